"""A flight on the wire: the looks of two minutes at one GPU, as part of a batch.

`{"gpu", "reason", "time_ns", "request", "times_ns": i8 column, "cols": {field: f4 column}}`, all columns
little-endian. Self-describing as the batch is: fields that a reader does not know are dropped.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unidle_agent.errors import WireError
from unidle_agent.fields import BY_NAME

MAX_FLIGHTS = 64
"""Most flights of one batch."""
MAX_TEXT = 256
"""Most characters of a GPU, a reason or a request."""
MAX_LOOKS = 8192
"""Most looks of one flight: 20 looks and 10 rows a second for two minutes are 3600."""


@dataclass(frozen=True, slots=True)
class Flight:
    """What the flight recorder of a node held of one GPU."""

    gpu: str
    """UUID of the physical GPU."""
    reason: str
    """`xid 79`, `gpu_lost`, `driver_hung`, `asked`, ...: see `unidle_agent.flight.recorder`."""
    time_ns: int
    """The node's clock when it was taken out of the ring."""
    times_ns: Sequence[int]
    """The node's clock at each look, oldest first; empty where the ring held nothing of this GPU."""
    columns: Mapping[str, Any]
    """Field -> array of one f4 per look in the field's unit; NaN is unknown."""
    request: str = ""
    """What it answers; empty where nobody asked."""


def whole(uuid: str) -> str:
    """The physical GPU of a MIG instance: looks are taken of whole GPUs."""
    return uuid.partition("/GI")[0]


def encode_flight(flight: Flight) -> dict[str, Any]:
    """As a map of MessagePack."""
    return {
        "gpu": flight.gpu,
        "reason": flight.reason,
        "time_ns": flight.time_ns,
        "request": flight.request,
        "times_ns": array("q", flight.times_ns).tobytes(),
        "cols": {name: bytes(values) for name, values in flight.columns.items()},
    }


def decode_flights(raw: Any) -> tuple[Flight, ...]:
    """Read a batch's list of what `encode_flight` wrote; raises WireError, or KeyError for what lacks."""
    if not isinstance(raw, list) or len(raw) > MAX_FLIGHTS:
        raise WireError(f"flights: expected a list of at most {MAX_FLIGHTS}, came {str(raw)[:40]!r}")
    return tuple(_flight(item) for item in raw)


def _flight(raw: Mapping[str, Any]) -> Flight:
    times = array("q", _column(raw["times_ns"], "times_ns", 8))
    columns = {}
    for name, data in raw["cols"].items():
        if name not in BY_NAME or BY_NAME[name].scope != "gpu":
            continue
        values = array("f", _column(data, name, 4))
        if len(values) != len(times):
            raise WireError(f"flights.{name}: expected {len(times)} values, came {len(values)}")
        columns[name] = values
    time_ns = raw["time_ns"]
    if not isinstance(time_ns, int) or not 0 <= time_ns < 2**63:
        raise WireError(f"flights.time_ns: expected nanoseconds since the epoch, came {time_ns!r}")
    return Flight(
        _text(raw["gpu"], "gpu", 1),
        _text(raw["reason"], "reason", 1),
        time_ns,
        times,
        columns,
        _text(raw.get("request", ""), "request", 0),
    )


def _column(data: Any, name: str, size: int) -> bytes:
    if not isinstance(data, bytes) or len(data) % size or len(data) > MAX_LOOKS * size:
        came = len(data) if isinstance(data, bytes) else type(data).__name__
        raise WireError(
            f"flights.{name}: expected at most {MAX_LOOKS} values of {size} bytes each, came {came}"
        )
    return data


def _text(value: object, key: str, low: int) -> str:
    if not isinstance(value, str) or not low <= len(value) <= MAX_TEXT:
        raise WireError(
            f"flights.{key}: expected a text of {low} to {MAX_TEXT} characters, came {str(value)[:40]!r}"
        )
    return value
