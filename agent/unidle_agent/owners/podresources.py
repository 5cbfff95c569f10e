"""The kubelet's podresources API: which pod was given which device.

A call of /v1.PodResourcesLister/List (generally available since Kubernetes 1.28) on the kubelet's socket
each time; mount the socket's folder, not the socket, so that a restarted kubelet is found again. The answer
is read by field number, and what is not known is skipped:

    ListPodResourcesResponse  1 pods            PodResources        1 name, 2 namespace, 3 containers
    ContainerResources        2 devices         ContainerDevices    1 resource name, 2 device ids

Replicas of one GPU (time-slicing) belong to several pods: the GPU is then `shared`. A GPU in no pod is held
by nobody: the kubelet knows all of them. Devices given by dynamic resource allocation are not read.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from unidle_agent.config import AgentSettings
from unidle_agent.errors import SourceError
from unidle_agent.owners import Claims
from unidle_agent.owners.devices import rows_of
from unidle_agent.owners.grpc import CallError, UnaryClient
from unidle_agent.owners.resolve import SHARED
from unidle_agent.sample import GpuReading
from unidle_agent.wire import Owner

METHOD = "/v1.PodResourcesLister/List"
DEADLINE_S = 2.0
RESOURCES = ("nvidia.com/gpu", "nvidia.com/mig-")
"""Beginnings of the names of resources that are GPUs (`nvidia.com/gpu.shared` too)."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class PodResources:
    """The kubelet behind `path`; a node without that socket has no kubelet."""

    name = "podresources"
    precedence = 20

    def __init__(self, path: Path, deadline_s: float = DEADLINE_S) -> None:
        self._path = path
        self._deadline_s = deadline_s
        self._client = UnaryClient(path)

    def read(self, gpus: Sequence[GpuReading]) -> Claims:
        """The pod of every GPU; raises SourceError where the kubelet does not answer."""
        try:
            if not stat.S_ISSOCK(self._path.stat().st_mode):
                raise SourceError(f"{self._path}: expected the kubelet's socket, it is no socket")
            devices = pods(self._client.call(METHOD, b"", self._deadline_s))
        except FileNotFoundError:
            self._client.close()
            return Claims()
        except (OSError, CallError, ValueError) as error:
            raise SourceError(
                f"{self._path}: no answer of the kubelet ({error}): run the agent as root, and see that "
                "the kubelet has podresources (1.28 and newer)"
            ) from None
        holding: dict[str, dict[str, None]] = {gpu.facts.uuid: {} for gpu in gpus}
        for pod, device in devices:
            for uuid in rows_of(device, gpus):
                holding[uuid][pod] = None
        return Claims({uuid: self._owner(list(found)) for uuid, found in holding.items()})

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _owner(self, found: list[str]) -> Owner:
        if not found:
            return Owner(False, source=self.name, confidence="high")
        shared = len(found) > 1
        confidence, note = ("medium", SHARED) if shared else ("high", "")
        return Owner(True, ",".join(found), source=self.name, confidence=confidence, note=note)


def pods(answer: bytes) -> list[tuple[str, str]]:
    """(`namespace/pod`, device id) of every GPU in the answer; raises ValueError where it is none."""
    out = []
    for pod in _inner(answer, 1):
        name, space = _text(pod, 1), _text(pod, 2)
        for container in _inner(pod, 3):
            for devices in _inner(container, 2):
                if _text(devices, 1).startswith(RESOURCES):
                    out += [(f"{space}/{name}", device.decode()) for device in _inner(devices, 2)]
    return out


def _text(message: bytes, number: int) -> str:
    return b"".join(list(_inner(message, number))[-1:]).decode()


def _inner(message: bytes, number: int) -> Iterator[bytes]:
    """Every field `number` that holds bytes (a text or a message)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            _, at = _varint(message, at)
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"expected protobuf, came wire type {kind}")
        if at + size > len(message):
            raise ValueError("expected protobuf, it ends within a field")
        if kind == BYTES and key >> 3 == number:
            yield message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(message):
            raise ValueError("expected protobuf, it ends within a number")
        byte = message[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("expected protobuf, a number has over 10 bytes")


def source(settings: AgentSettings) -> PodResources | None:
    """Where `podresources_socket` is set; the kubelet may start later."""
    return PodResources(Path(settings.podresources_socket)) if settings.podresources_socket else None
