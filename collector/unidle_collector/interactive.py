"""Which jobs a person sits at, by the names that their launchers give them."""

from __future__ import annotations

NAMES = ("interactive", "sys/dashboard/", "spawner-jupyterhub", "jupyter", "code-server", "rstudio")
"""How such names begin: salloc and srun --pty, Open OnDemand, batchspawner of JupyterHub, KubeSpawner's pods
(`jupyter-USER`), and servers of notebooks and editors that are started by hand under their own name."""


def named_so(job: str) -> bool:
    """Is it one, by the name of a job, or of a pod as `namespace/pod`. A hidden name says nothing."""
    return job.startswith(NAMES) or job.partition("/")[2].startswith(NAMES)
