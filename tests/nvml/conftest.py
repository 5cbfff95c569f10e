from tests.nvml_library import nvml, nvml_directory  # noqa: F401
