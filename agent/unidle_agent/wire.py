"""The wire: one batch of rows from one node, as MessagePack of column buffers, zlib-compressed.

Self-describing: a reader skips keys and columns that it does not know and reads missing ones as
unknown, so neighbouring versions work together. Needs neither numpy nor pyarrow.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal, Protocol

import msgpack

from unidle_agent.errors import WireError
from unidle_agent.fields import COLUMNS, UNKNOWN_U8, Field
from unidle_agent.wire_flight import Flight, decode_flights, encode_flight

VERSION = 1
CONTENT_TYPE = "application/vnd.unidle.batch"
CLOCK_HEADER = "X-Unidle-Clock-Ns"
"""HTTP header with the node's clock at the moment of sending: a spooled batch is older than its sending."""
MAX_BATCH_BYTES = 32 * 1024 * 1024
"""Most bytes that a batch may have once unpacked: a 60 s batch of 16 GPUs with 60 fields is 0.5 MB."""

TYPECODES: dict[str, Literal["f", "d", "Q"]] = {"f4": "f", "f8": "d", "u8": "Q"}
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a GPU, as far as the node knows. `allocated` is None when nobody says."""

    allocated: bool | None = None
    job: str = ""
    user: str = ""
    interactive: bool = False
    source: str = ""
    """Where the answer comes from: `slurm`, `dcgm-labels`, `processes`, ..."""
    confidence: str = ""
    """`high`, `medium` or `low`; `inferred` where allocation was concluded from use."""
    note: str = ""
    """What is peculiar: one of the words of `unidle_agent.owners.resolve`, `orphan` among them."""
    used_by: str = ""
    """The jobs whose processes are on the GPU where they are not `job`, joined by commas."""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What changes rarely about one GPU or MIG instance."""

    uuid: str
    index: int | None = None
    model: str = ""
    pci_bus_id: str = ""
    minor: int | None = None
    driver: str = ""
    mig_profile: str = ""
    share: float = 1.0
    """Share of the whole GPU: 1, or a MIG instance's part of it."""
    sources: dict[str, str] = field(default_factory=dict)
    """Field name -> source that gave it (`nvml`, `gpm`, `dcgm-exporter`, `simulator`)."""
    owner: Owner = Owner()
    mig_uuid: str = ""
    """Of a MIG instance: the name that the driver and the kubelet have for it, `MIG-...`."""


NODE = "*"
"""In the place of a GPU's UUID: it happened to the whole node."""
SXID, SXID_FATAL = "sxid", "sxid_fatal"
"""Kinds of events: what an NVSwitch reported, by its own class."""
KERNEL_WORDS, COUNTED_WORDS = "kernel log: ", "dcgm-exporter: "
"""What the text of an event from there begins with; after the first, the words are the driver's own."""
LINKS_PER_SWITCH = 256


def part_of_switch(switch: int, link: int | None) -> int:
    """`Event.part` of an NVSwitch's link, or of the switch as a whole."""
    return switch * LINKS_PER_SWITCH + (
        LINKS_PER_SWITCH - 1 if link is None else min(link, LINKS_PER_SWITCH - 2)
    )


def switch_and_link(part: int) -> tuple[int, int | None]:
    """The switch and link of an `Event.part` that is not negative."""
    switch, link = divmod(part, LINKS_PER_SWITCH)
    return switch, None if link == LINKS_PER_SWITCH - 1 else link


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a GPU at an instant, as its driver reported it."""

    time_ns: int
    """The node's clock when it was heard."""
    gpu: str
    """UUID, or NODE."""
    kind: str
    """`xid`, `recovery_action`, `ecc_uncorrected`, ...: see `unidle_agent.sources.nvml_events`; SXID."""
    code: int
    """The XID or SXid; otherwise what the driver gives with the event, 0 where it gives nothing."""
    text: str = ""
    part: int = -1
    """Which NVSwitch and link it is of, see `part_of_switch`; -1 where it is of none."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where in one buffer each column lies; batches with the same columns and rows share theirs."""

    names: tuple[str, ...]
    places: Mapping[str, tuple[int, int, Literal["f", "d", "Q"]]]
    """Column -> first byte, end, typecode."""
    sizes: Sequence[int]
    """Bytes of each column."""


class Columns(Mapping[str, memoryview]):
    """The columns of a batch that was read: one buffer, of which views of little-endian values are made when
    they are asked for. A collector holds tens of thousands of batches: an object per column would be most of
    their memory, and whoever wants one column of all of them takes it from the buffers at once."""

    __slots__ = ("data", "layout")

    def __init__(self, data: bytes, layout: Layout) -> None:
        self.data = data
        self.layout = layout

    def __getitem__(self, name: str) -> memoryview[Any]:
        first, end, code = self.layout.places[name]
        return memoryview(self.data)[first:end].cast(code)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.places)

    def __len__(self) -> int:
        return len(self.layout.places)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one node: `len(times_ns)` instants x `len(gpus)` GPUs, time-major.

    `columns[name]` is an array of instants x GPUs values, `host[name]` one of instants values, in the
    dtype of the field table. `facts` is None when it has not changed since `facts_id` was last sent.
    """

    node: str
    boot: str
    seq: int
    sent_ns: int
    """The node's clock when it closed the batch."""
    period_s: float
    times_ns: Sequence[int]
    gpus: tuple[str, ...]
    columns: Mapping[str, Any]
    host: Mapping[str, Any]
    facts_id: int = 0
    facts: tuple[GpuFacts, ...] | None = None
    simulated: bool = False
    events: tuple[Event, ...] = ()
    flights: tuple[Flight, ...] = ()


def column(spec: Field, values: Iterable[float | int | None]) -> array[Any]:
    """A column of `spec`'s dtype from values in base units; None and NaN become unknown.

    A counter is given as a whole number of its resolution already: it never passes through a float.
    """
    if spec.dtype == "u8":
        return array("Q", [UNKNOWN_U8 if v is None or v != v or v < 0 else int(v) for v in values])
    return array(TYPECODES[spec.dtype], [NAN if v is None else float(v) for v in values])


def encode(batch: Batch) -> bytes:
    """The bytes that travel."""
    document: dict[str, Any] = {
        "v": VERSION,
        "node": batch.node,
        "boot": batch.boot,
        "seq": batch.seq,
        "sent_ns": batch.sent_ns,
        "period_s": batch.period_s,
        "simulated": batch.simulated,
        "times_ns": array("q", batch.times_ns).tobytes(),
        "gpus": list(batch.gpus),
        "cols": {name: bytes(values) for name, values in batch.columns.items()},
        "host": {name: bytes(values) for name, values in batch.host.items()},
        "facts_id": batch.facts_id,
    }
    if batch.facts is not None:
        document["facts"] = [asdict(facts) for facts in batch.facts]
    if batch.events:
        document["events"] = [asdict(event) for event in batch.events]
    if batch.flights:
        document["flights"] = [encode_flight(flight) for flight in batch.flights]
    return zlib.compress(msgpack.packb(document), 1)


class Zlib(Protocol):
    """The module `zlib`, or another that does the same faster."""

    @property
    def error(self) -> type[Exception]: ...
    def decompressobj(self) -> Any: ...


def decode(data: bytes, unzip: Zlib = zlib) -> Batch:
    """Read what `encode` wrote, by any neighbouring version; raises WireError saying what is wrong.

    Columns come back as `Columns`; those of unknown fields are dropped.
    """
    document = _unpack(data, unzip)
    try:
        if document["v"] != VERSION:
            raise WireError(
                f"expected schema version {VERSION}, came {document['v']!r}: update the older side"
            )
        times = array("q", document["times_ns"])
        gpus = _gpus(tuple(document["gpus"]))
        facts = document.get("facts")
        return Batch(
            node=_text(document["node"], "node"),
            boot=_text(document["boot"], "boot"),
            seq=_whole(document["seq"], "seq"),
            sent_ns=_whole(document["sent_ns"], "sent_ns"),
            period_s=float(document["period_s"]),
            times_ns=times,
            gpus=gpus,
            columns=_columns(document["cols"], "gpu", len(times) * len(gpus)),
            host=_columns(document["host"], "host", len(times)),
            facts_id=_whole(document.get("facts_id", 0), "facts_id"),
            facts=None if facts is None else tuple(_facts(item) for item in facts),
            simulated=bool(document.get("simulated", False)),
            events=tuple(_event(item) for item in document.get("events", ())),
            flights=decode_flights(document.get("flights", [])),
        )
    except WireError:
        raise
    except KeyError as error:
        raise WireError(f"expected the key {error.args[0]!r} in the batch, it is missing") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WireError(f"expected a batch of schema version {VERSION}: {error}") from error


def _unpack(data: bytes, unzip: Zlib) -> dict[str, Any]:
    unzipping = unzip.decompressobj()
    try:
        raw = unzipping.decompress(data, MAX_BATCH_BYTES)
    except unzip.error as error:
        raise WireError(f"expected zlib-compressed MessagePack: {error}") from error
    if unzipping.unconsumed_tail:
        raise WireError(f"expected at most {MAX_BATCH_BYTES} bytes unpacked, there are more")
    if not unzipping.eof:
        raise WireError("expected a whole batch, the end is missing")
    try:
        document = msgpack.unpackb(raw, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"expected MessagePack: {error}") from error
    if not isinstance(document, dict):
        raise WireError(f"expected a map, came {type(document).__name__}")
    return document


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 256:
        raise WireError(f"{key}: expected a text of 1 to 256 characters, came {str(value)[:40]!r}")
    return value


@lru_cache(maxsize=8192)
def _gpus(uuids: tuple[object, ...]) -> tuple[str, ...]:
    """Checked once for all batches of a node, which share the texts."""
    return tuple(_text(uuid, "gpus") for uuid in uuids)


def _whole(value: object, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WireError(f"{key}: expected a whole number of at least 0, came {value!r}")
    return value


Scope = Literal["gpu", "host"]


def _codes(scope: Scope) -> dict[str, tuple[Literal["f", "d", "Q"], int]]:
    """Column name -> (typecode, bytes per value): a collector looks up 12,000 columns a second."""
    codes = {column.name: TYPECODES[column.dtype] for column in COLUMNS.values() if column.scope == scope}
    return {name: (code, array(code).itemsize) for name, code in codes.items()}


_CODES = {"gpu": _codes("gpu"), "host": _codes("host")}


def _columns(raw: Any, scope: Scope, count: int) -> Columns:
    layout = _layout(tuple(raw), scope, count)
    if set(map(type, raw.values())) == {bytes} and list(map(len, raw.values())) == layout.sizes:
        return Columns(b"".join(raw.values()), layout)
    known: list[str] = []
    for name, data in raw.items():
        if name not in _CODES[scope]:
            continue
        value_bytes = _CODES[scope][name][1]
        if type(data) is not bytes or len(data) != value_bytes * count:
            came = len(data) if isinstance(data, bytes) else type(data).__name__
            raise WireError(
                f"column {name}: expected {count} values of {COLUMNS[name].dtype} "
                f"({value_bytes * count} bytes), came {came}"
            )
        known.append(name)
    return Columns(b"".join([raw[name] for name in known]), _layout(tuple(known), scope, count))


@lru_cache(maxsize=4096)
def _layout(names: tuple[str, ...], scope: Scope, count: int) -> Layout:
    """Of those of the columns that are known."""
    places: dict[str, tuple[int, int, Literal["f", "d", "Q"]]] = {}
    end = 0
    for name in names:
        if name in _CODES[scope]:
            code, value_bytes = _CODES[scope][name]
            places[name] = (end, end + value_bytes * count, code)
            end += value_bytes * count
    return Layout(tuple(places), places, [last - first for first, last, _ in places.values()])


_OWNER_KEYS = frozenset(item.name for item in fields(Owner))


def _event(raw: Mapping[str, Any]) -> Event:
    text = raw.get("text", "")
    if not isinstance(text, str) or len(text) > 1024:
        raise WireError(f"events.text: expected a text of at most 1024 characters, came {str(text)[:40]!r}")
    return Event(
        time_ns=_whole(raw["time_ns"], "events.time_ns"),
        gpu=_text(raw["gpu"], "events.gpu"),
        kind=_text(raw["kind"], "events.kind"),
        code=_whole(raw["code"], "events.code"),
        text=text,
        part=_part(raw.get("part", -1)),
    )


def _part(value: object) -> int:
    return -1 if value == -1 else _whole(value, "events.part")


_FACT_KEYS = frozenset(item.name for item in fields(GpuFacts))


def _facts(raw: Mapping[str, Any]) -> GpuFacts:
    known = {key: value for key, value in raw.items() if key in _FACT_KEYS}
    _text(known.get("uuid"), "facts.uuid")
    owner = {key: value for key, value in (known.get("owner") or {}).items() if key in _OWNER_KEYS}
    return GpuFacts(**{**known, "owner": Owner(**owner)})
