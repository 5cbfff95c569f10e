"""What a column of somebody else's table means: time, node, GPU, job, or a field and its unit.

A name is understood, in this order: our own field names; DCGM's names of both generations with that
name's unit; the roles below; and the names that nvidia-smi and common tools use, with the unit in the
name (`_pct`, `_mib`, `[W]`) or beside the values (`45 %`). Everything else is reported, never dropped
in silence.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from unidle_agent.dcgm_values import METRICS, PREFIX
from unidle_agent.fields import BY_NAME, FIELDS, Field
from unidle_collector.recorded.names import (
    ALIASES,
    DMON,
    FIELD_IDS,
    MEMORY_SHARE,
    ROLES,
    SHARE_IDS,
    SHARES,
    TOTALS,
    UNITS,
    Role,
)

_NUMBERED = re.compile(r"(?:dcgm|field|fid)?[_ -]?(\d{3,4})", re.IGNORECASE)
_AVERAGED = re.compile(r"(?:mean|avg|average)[_ ](?=.)|[_ /](?:mean|avg|average)(?=[_ ]|$)", re.IGNORECASE)
_OF_GPU = re.compile(r"(?:gpu|device)[_ ](.+)")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
"""Where words meet in powerWatts."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """A column that carries a field: multiply by `factor` for base units."""

    field: Field
    factor: float
    unit_told: bool
    """False when neither the field's own name nor the column's says the unit: the values must."""
    own: bool = False
    """It bears our own name for the field."""
    total: bool = False
    """The field is a rate, and the column by its name the total of it so far."""


def normal(name: str) -> str:
    """`Utilization.GPU [%]` -> `utilization_gpu`: lower case, words joined by "_", no unit in brackets."""
    bare = re.sub(r"[\[(].*?[\])]", "", name)
    return re.sub(r"[^a-z0-9]+", "_", bare.lower()).strip("_") if bare.strip() != "__name__" else "__name__"


def without_unit(name: str) -> str:
    """`sm_util [%]`, `sm_util_pct` -> `sm_util`."""
    words = normal(name).split("_")
    return "_".join(words[:-1] if len(words) > 1 and words[-1] in UNITS["1"] else words)


def unit_in_brackets(name: str) -> str:
    """`power.draw [W]` -> `w`; empty when there is none."""
    found = re.search(r"[\[(]\s*(.+?)\s*[\])]", name)
    return found.group(1).lower() if found else ""


def factor_of(spec: Field, unit: str) -> float | None:
    """Factor from `unit`, as somebody wrote it, to the field's base unit; None when it is no such unit."""
    return UNITS.get(spec.unit, {}).get(unit.strip().lower())


def meaning(name: str) -> Meaning | None:
    """The field that a column of this name carries, or None. The mean of a field is that field
    (`sm_active_avg`), and what a GPU does is said with `gpu_` before it or without."""
    text = name.strip()
    if (total := TOTALS.get(text.lower())) is not None:
        return Meaning(BY_NAME[total], 1.0, unit_told=True, total=True)
    if (found := _named(text)) is not None:
        return found
    if (averaged := _AVERAGED.sub("", text, count=1)) != text:
        return meaning(averaged)
    bare = _OF_GPU.fullmatch(normal(text))
    return _by_alias(bare[1], unit_in_brackets(text)) if bare else None


def _named(text: str) -> Meaning | None:
    own = BY_NAME.get(text.lower())
    if own is not None:
        return Meaning(own, 1.0, unit_told=True, own=True)
    upper = text.upper()
    if text in DMON:
        upper = text = PREFIX + DMON[text]
    if (numbered := _NUMBERED.fullmatch(text)) and int(numbered[1]) in FIELD_IDS:
        upper = text = PREFIX + FIELD_IDS[int(numbered[1])]
    spellings = [upper, text.lower(), PREFIX + upper]
    if text == upper:  # SM_ACTIVE is DCGM's, sm_active may be anybody's
        spellings += [f"{PREFIX}DEV_{upper}", f"{PREFIX}PROF_{upper}"]
    for spelling in spellings:
        if (metric := METRICS.get(spelling)) is not None:
            # An id is a field of its own: 1613 is the ratio, while its name was an alias of 203 before.
            told = not metric.by_evidence or numbered is not None
            return Meaning(metric.field, metric.factor, unit_told=told)
    unit = unit_in_brackets(text)
    if (share := _share(text, unit)) is not None:
        return share
    return _by_alias(normal(text), unit) or _by_alias(normal(_CAMEL.sub("_", text)), unit)


def _share(text: str, unit: str) -> Meaning | None:
    if text.lower() in SHARE_IDS:
        return Meaning(MEMORY_SHARE, 1.0, unit_told=False)
    words = normal(_CAMEL.sub("_", text)).split("_")
    unit, base = (unit, words) if unit else (words[-1], words[:-1])
    factor = UNITS["1"].get(unit)
    if factor is None or "_".join(base) not in SHARES:
        return None
    return Meaning(MEMORY_SHARE, factor, unit_told=True)


def _by_alias(base: str, unit: str) -> Meaning | None:
    spec = _spec(base)
    if spec is not None:
        factor = factor_of(spec, unit) if unit else None
        dimensionless = spec.unit not in UNITS
        if factor is None and any(unit in known for known in UNITS.values()):
            return None  # memory.used [%] is no number of bytes
        return Meaning(spec, 1.0 if factor is None else factor, factor is not None or dimensionless)
    # The unit as last word or words of the name: power_mw, memory_used_mib, pcie_tx_bytes_per_s.
    words = base.split("_")
    for count in (1, 2, 3):
        if len(words) <= count:
            break
        spec = _spec("_".join(words[:-count]))
        factor = factor_of(spec, "_".join(words[-count:])) if spec else None
        if spec is not None and factor is not None:
            return Meaning(spec, factor, unit_told=True)
    return None


def _spec(base: str) -> Field | None:
    return BY_NAME.get(base) or BY_NAME.get(ALIASES.get(base, "")) or BY_NAME.get(_WITHOUT_UNIT.get(base, ""))


# Our own names without their unit: `power_mw` is power_w in another unit.
_WITHOUT_UNIT = {
    re.sub(r"_(ratio|bytes|w|j|hz|c|s|bytes_per_s)$", "", spec.name): spec.name for spec in FIELDS
}


def role_columns(names: list[str]) -> dict[Role, list[str]]:
    """Role -> the columns that give it, best first. A name may stand in several roles."""
    written = {normal(name) if normal(name) else name: name for name in reversed(names)}
    return {
        role: [written[candidate] for candidate in candidates if candidate in written]
        for role, candidates in ROLES.items()
    }


def nearest(name: str) -> str:
    """The known name closest to `name`, for a hint; empty when nothing is close."""
    known = [*BY_NAME, *ALIASES]
    found = difflib.get_close_matches(normal(name), known, 1, 0.75)
    return ALIASES.get(found[0], found[0]) if found else ""
