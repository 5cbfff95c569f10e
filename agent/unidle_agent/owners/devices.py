"""Which rows a name of a device means: an index, a UUID, or what a device plugin calls it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from unidle_agent.sample import GpuReading

INDEX = re.compile(r"(?P<index>\d+)(?:\.(?P<instance>\d+))?")
"""`3`, or `3.2` for GPU instance 2 of GPU 3."""
MINOR = re.compile(r"nvidia(?P<minor>\d+)(?:/gi(?P<instance>\d+))?")
"""GKE's device ids: the device file, and the GPU instance."""
REPLICA = re.compile(r"(::\d+|/vgpu\d+)$")
"""What time-slicing appends: the replica is a share of the GPU before it."""


def rows_of(device: str, gpus: Iterable[GpuReading]) -> list[str]:
    """UUIDs of the rows that `device` means. A whole GPU that MIG cuts is all its instances."""
    device = REPLICA.sub("", device)
    if match := INDEX.fullmatch(device):
        return [
            gpu.facts.uuid
            for gpu in gpus
            if gpu.facts.index == int(match["index"]) and _is_instance(gpu, match["instance"])
        ]
    if match := MINOR.fullmatch(device):
        return [
            gpu.facts.uuid
            for gpu in gpus
            if gpu.facts.minor == int(match["minor"]) and _is_instance(gpu, match["instance"])
        ]
    return [gpu.facts.uuid for gpu in gpus if device in _names(gpu)]


def _names(gpu: GpuReading) -> set[str]:
    return {gpu.facts.uuid, gpu.facts.uuid.partition("/GI")[0], gpu.facts.mig_uuid} - {""}


def _is_instance(gpu: GpuReading, instance: str | None) -> bool:
    """Whether the row is (a compute instance of) GPU instance `instance`; None is any."""
    if instance is None:
        return True
    return gpu.facts.uuid.partition("/GI")[2].partition("/")[0] == instance
