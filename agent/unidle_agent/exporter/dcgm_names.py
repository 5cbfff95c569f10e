"""The names, labels and units of dcgm-exporter, before 4.9 and since, for dashboards that ask for them.

Names and factors are the `dcgm` pairs of the field table, read backwards: what `unidle_agent.dcgm` makes
of such a page is what went in. Power, power limit and energy of a MIG instance are the board's again,
as dcgm-exporter repeats them.

| | `dcgm` | `dcgm49` |
|---|---|---|
| units | MHz, MiB, %, mJ, ns | Hz, bytes, ratio 0-1, J, s |
| host | `Hostname` | `hostname` |
| driver | `DCGM_FI_DRIVER_VERSION` | `DCGM_FI_SYSTEM_DRIVER_VERSION` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unidle_agent.dcgm import SPLIT_BY_SHARE
from unidle_agent.dcgm_values import PREFIX
from unidle_agent.exporter.render import Metric
from unidle_agent.fields import MIB, NVLINK_OLD_UNIT, Field
from unidle_agent.sample import GpuReading, Value
from unidle_agent.wire import GpuFacts

UNIT_NAMES = {1e6: "MHz", 0.01: "%", MIB: "MiB", 1e-3: "mJ", 1e-9: "ns", NVLINK_OLD_UNIT: "1.024 MB/s"}
TYPED_COUNTER = "DEV_NVLINK_BANDWIDTH_TOTAL"
"""A rate that dcgm-exporter's default list calls a counter."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One generation of dcgm-exporter."""

    generation: int
    """Place of its name among a field's `dcgm` pairs, which begin with the oldest."""
    host_label: str
    driver_label: str


DIALECTS = {
    "dcgm": Dialect(0, "Hostname", "DCGM_FI_DRIVER_VERSION"),
    "dcgm49": Dialect(-1, "hostname", "DCGM_FI_SYSTEM_DRIVER_VERSION"),
}


def gpu_labels(facts: GpuFacts, dialect: Dialect, node: str) -> dict[str, str]:
    """The labels that dcgm-exporter gives every series of a GPU or MIG instance, as far as known."""
    namespace, pod = _pod(facts.owner.job)
    labels = {
        "gpu": "" if facts.index is None else str(facts.index),
        **join_labels(facts),
        "pci_bus_id": facts.pci_bus_id,
        "device": "" if facts.minor is None else f"nvidia{facts.minor}",
        "modelName": facts.model,
        "GPU_I_PROFILE": facts.mig_profile,
        dialect.host_label: node,
        dialect.driver_label: facts.driver,
        "namespace": namespace,
        "pod": pod,
    }
    # The driver's label stands even without a text: it is how a reader tells a ratio from a percentage.
    return {key: text for key, text in labels.items() if text or key == dialect.driver_label}


def join_labels(facts: GpuFacts) -> dict[str, str]:
    """What a GPU or MIG instance is identified by on such a page."""
    parent, _, instance = facts.uuid.partition("/GI")
    return {"UUID": parent, "GPU_I_ID": instance} if instance else {"UUID": parent}


def gpu_family(
    spec: Field, gpus: Sequence[GpuReading], labels: Mapping[str, Mapping[str, str]], dialect: Dialect
) -> Metric:
    """One field that has a DCGM name, of every GPU that has it; `labels` by UUID."""
    name, factor = spec.dcgm[dialect.generation]
    parts = _parts_of_board(gpus) if spec.name in SPLIT_BY_SHARE else {}
    samples = []
    for gpu in gpus:
        if spec.name in gpu.values:
            value = gpu.values[spec.name] / parts.get(gpu.facts.uuid, 1)
            whole = spec.dtype == "u8"
            samples.append((labels[gpu.facts.uuid], _printed(spec, factor, round(value) if whole else value)))
    unit = UNIT_NAMES.get(factor)
    doc = f"{spec.doc} (in {unit})" if unit else spec.doc
    counter = spec.kind == "counter" or name == TYPED_COUNTER
    return Metric(PREFIX + name, "counter" if counter else "gauge", doc, samples)


def _printed(spec: Field, factor: float, value: Value) -> float:
    """The number to print for `value` of the row: `dcgm_values.base_value`, backwards."""
    if spec.kind == "counter":
        per_unit = round(factor / spec.resolution)
        return value if per_unit == 1 else value / per_unit
    if factor < 1:  # 0.57 is 57 %, not 56.99999999999999 %
        return float(f"{value * round(1 / factor):.15g}")
    return value if factor == 1 else value / factor


def _parts_of_board(gpus: Sequence[GpuReading]) -> dict[str, float]:
    """Which part of its board each MIG instance answers for."""
    instances = [gpu.facts for gpu in gpus if "/GI" in gpu.facts.uuid]
    total: dict[str, float] = {}
    for facts in instances:
        board = facts.uuid.partition("/GI")[0]
        total[board] = total.get(board, 0.0) + facts.share
    return {facts.uuid: facts.share / total[facts.uuid.partition("/GI")[0]] for facts in instances}


def _pod(job: str) -> tuple[str, str]:
    """Namespace and pod where the one job is a pod, `namespace/pod`; else two empty texts."""
    namespace, slash, pod = job.partition("/")
    return (namespace, pod) if slash and "," not in job and "/" not in pod else ("", "")
