"""A list means the same as Arrow and as JSON, whatever is in it."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from unidle_collector.api import forms
from unidle_collector.model import Account, Finding, Incident, JobNow, NodeNow, Recommendation, TargetNow

PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=20),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type of the model."""
    if hint in PLAIN:
        return PLAIN[hint]
    if is_dataclass(hint):
        return records_of(hint)
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(inside)
    if origin in (Union, types.UnionType):
        return st.one_of(*(st.none() if one is type(None) else values_of(one) for one in inside))
    if origin is tuple:
        return st.lists(values_of(inside[0]), max_size=2).map(tuple)
    assert origin is dict, hint
    return st.dictionaries(values_of(inside[0]), values_of(inside[1]), max_size=2)


def records_of(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{one.name: values_of(hints[one.name]) for one in fields(kind)})


@pytest.mark.parametrize("kind", [Account, Finding, Incident, JobNow, NodeNow, Recommendation, TargetNow])
@settings(
    max_examples=12, phases=(Phase.generate,), suppress_health_check=list(HealthCheck)
)  # such records are slow to shrink
@given(data=st.data())
def test_arrow_and_json_give_the_same_records(kind: Any, data: st.DataObject) -> None:
    items = data.draw(st.lists(records_of(kind), max_size=2))
    adapter: TypeAdapter[Any] = TypeAdapter(list[kind])
    by_json = adapter.validate_json(forms.encoded(kind, items, False))
    table = pa.ipc.open_stream(forms.encoded(kind, items, True)).read_all()
    assert by_json == items
    assert adapter.validate_python(table.to_pylist(maps_as_pydicts="strict")) == by_json
