"""unidle's own names on /metrics, in base units, derived from the field table.

Every GPU has the labels `gpu` (index) and `uuid` only. What is known about it is in the info series
`unidle_gpu_info`, who holds it in `unidle_gpu_job_info`, both joined on `uuid`: a label on every series
would begin dozens of new series with each job. Owners reach this module as they may be shown: privacy
is kept where they are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unidle_agent.exporter.render import Metric
from unidle_agent.fields import HOST_FIELDS, Field
from unidle_agent.sample import GpuReading, Value, is_simulated
from unidle_agent.wire import GpuFacts

UNIT_WORDS = (
    ("_bytes_per_s", "_bytes_per_second"),
    ("_hz", "_hertz"),
    ("_w", "_watts"),
    ("_j", "_joules"),
    ("_c", "_celsius"),
    ("_s", "_seconds"),
    ("process_count", "processes"),  # `_count` is kept for histograms
)
"""Ending of a field's name -> Prometheus's word for it; the first that fits counts."""


def metric_name(field: Field) -> str:
    """The name of a field on /metrics: `power_w` of a GPU is `unidle_gpu_power_watts`."""
    stem = field.name.removeprefix(f"{field.scope}_")
    for ending, word in UNIT_WORDS:
        if stem.endswith(ending):
            stem = stem.removesuffix(ending) + word
            break
    return f"unidle_{field.scope}_{stem}" + ("_total" if field.kind == "counter" else "")


def in_base_units(field: Field, value: Value) -> float:
    """A counter's whole number of its resolution as a number of its unit; anything else as it is."""
    if field.kind != "counter":
        return value
    per_unit = round(1 / field.resolution)
    return value if per_unit == 1 else value / per_unit


def gpu_labels(facts: GpuFacts) -> dict[str, str]:
    """The labels of every series of a GPU."""
    return {"gpu": "" if facts.index is None else str(facts.index), "uuid": facts.uuid}


def gpu_family(spec: Field, gpus: Sequence[GpuReading], labels: Mapping[str, Mapping[str, str]]) -> Metric:
    """One field of every GPU that has it; `labels` by UUID."""
    return _family(
        spec,
        [
            (labels[gpu.facts.uuid], in_base_units(spec, gpu.values[spec.name]))
            for gpu in gpus
            if spec.name in gpu.values
        ],
    )


def host_families(host: Mapping[str, Value]) -> list[Metric]:
    """Every field of the host that is known."""
    return [
        _family(spec, [({}, in_base_units(spec, host[spec.name]))])
        for spec in HOST_FIELDS
        if spec.name in host
    ]


def about_gpus(gpus: Sequence[GpuReading], more_labels: Mapping[str, Mapping[str, str]]) -> list[Metric]:
    """What is known about the GPUs and who holds them; the job gets `more_labels` (by UUID) to join on."""
    facts = [gpu.facts for gpu in gpus]
    simulated = any(is_simulated(known) for known in facts)
    return [
        Metric("unidle_gpu_info", "info", "what is known about the GPU", [_info(known) for known in facts]),
        Metric(
            "unidle_simulated", "gauge", "1: SIMULATED data, not of a real machine", [({}, 1)] * simulated
        ),
        Metric(
            "unidle_gpu_allocated",
            "gauge",
            "1: somebody holds the GPU, 0: nobody does, absent: nobody says",
            [
                (gpu_labels(known), int(known.owner.allocated))
                for known in facts
                if known.owner.allocated is not None
            ],
        ),
        Metric(
            "unidle_gpu_job_info",
            "info",
            "the job that holds the GPU; join on uuid",
            [
                _job_info(known, more_labels.get(known.uuid, {}))
                for known in facts
                if known.owner.job or known.owner.user or known.owner.used_by
            ],
        ),
    ]


def _family(spec: Field, samples: Sequence[tuple[Mapping[str, str], float]]) -> Metric:
    return Metric(metric_name(spec), "counter" if spec.kind == "counter" else "gauge", spec.doc, samples)


def _info(facts: GpuFacts) -> tuple[dict[str, str], float]:
    labels = {
        "model": facts.model,
        "driver": facts.driver,
        "pci_bus_id": facts.pci_bus_id,
        "mig_profile": facts.mig_profile,
    }
    return {**gpu_labels(facts), **_known(labels)}, 1


def _job_info(facts: GpuFacts, more: Mapping[str, str]) -> tuple[dict[str, str], float]:
    owner = facts.owner
    labels = {
        "job": owner.job,
        "user": owner.user,
        "source": owner.source,
        "confidence": owner.confidence,
        "note": owner.note,
        "used_by": owner.used_by,
    }
    return {**gpu_labels(facts), **more, **_known(labels)}, 1


def _known(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in labels.items() if text}
