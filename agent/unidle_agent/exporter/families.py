"""The latest values as families, under the names asked for.

`own` is the default. With `dcgm` or `dcgm49` each field that dcgm-exporter has a name for goes by that
name; all others (the GPU's state, processes, the host) keep their own, so that no choice hides anything.
"""

from __future__ import annotations

from unidle_agent.exporter import dcgm_names, own_names
from unidle_agent.exporter.render import Metric
from unidle_agent.fields import GPU_FIELDS
from unidle_agent.sample import Reading


def families(reading: Reading, names: str, node: str) -> list[Metric]:
    """Everything in `reading`, where counters are whole numbers of their resolution."""
    gpus = reading.gpus
    own = {gpu.facts.uuid: own_names.gpu_labels(gpu.facts) for gpu in gpus}
    dialect = dcgm_names.DIALECTS.get(names)
    if dialect is None:
        out = own_names.about_gpus(gpus, {})
        out += [own_names.gpu_family(spec, gpus, own) for spec in GPU_FIELDS]
    else:
        theirs = {gpu.facts.uuid: dcgm_names.gpu_labels(gpu.facts, dialect, node) for gpu in gpus}
        out = own_names.about_gpus(gpus, {gpu.facts.uuid: dcgm_names.join_labels(gpu.facts) for gpu in gpus})
        out += [
            dcgm_names.gpu_family(spec, gpus, theirs, dialect)
            if spec.dcgm
            else own_names.gpu_family(spec, gpus, own)
            for spec in GPU_FIELDS
        ]
    return out + own_names.host_families(reading.host)
