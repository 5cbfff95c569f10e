"""Lists of hosts and generic resources, as Slurm writes them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidle_collector.scheduler.slurm_text import Gres, gpus, gres, hosts, numbers, split, tres


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("gpu1", ("gpu1",)),
        ("node[01-03,07]", ("node01", "node02", "node03", "node07")),
        ("gpu[1-2],login,cpu[009-010]", ("gpu1", "gpu2", "login", "cpu009", "cpu010")),
        ("r[1-2]n[1-2]-ib", ("r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib")),
    ],
)
def test_a_list_of_hosts_is_expanded_in_order_with_its_zeros(text: str, names: tuple[str, ...]) -> None:
    assert hosts(text) == names


@pytest.mark.parametrize(
    "text", ["gpu[1-", "gpu]1[", "gpu[a-b]", "gpu[3-1]", "gpu[0-999999999]", "n[1-999][1-999]"]
)
def test_a_list_that_is_none_or_is_endless_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        hosts(text)


def test_resources_with_commas_in_brackets_stay_whole() -> None:
    assert gres("gpu:a100:4(IDX:0-2,7),shard:0,gpu:h100:1(S:0-1)(IDX:8)") == (
        Gres("gpu", "a100", 4, (0, 1, 2, 7)),
        Gres("shard", "", 0, None),
        Gres("gpu", "h100", 1, (8,)),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu:b200:8", (8, None, "b200")),
        ("gpu:2(IDX:3,5)", (2, (3, 5), "")),
        ("gpu:b200:0(IDX:N/A),shard:0", (0, (), "b200")),
        ("gpu:a100:2(IDX:0-1),gpu:h100:1(IDX:2)", (3, (0, 1, 2), "a100,h100")),
        ("gpu:a100:2(IDX:0-1),gpu:h100:1", (3, None, "a100,h100")),
        ("gres:gpu:b200:3", (3, None, "b200")),
        ("gres/gpu:2", (2, None, "")),
        ("gres:gpu", (1, None, "")),
        ("N/A", (0, (), "")),
        ("", (0, (), "")),
        ("shard:4", (0, (), "")),
    ],
)
def test_the_gpus_of_a_list_of_resources(text: str, expected: tuple[object, ...]) -> None:
    assert gpus(gres(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu=4,mem=16G,node=1,billing=4", None),
        ("cpu=4,gres/gpu=2,gres/gpu:b200=2", 2),
        ("cpu=4,gres/gpu:b200=2,gres/gpu:a100=1", 3),
        ("", None),
    ],
)
def test_accounted_gpus_are_never_counted_twice(text: str, expected: int | None) -> None:
    assert tres(text) == expected


names = st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True)
indices = st.sets(st.integers(0, 63), min_size=1, max_size=16).map(sorted)


def folded(values: list[int], width: int = 1) -> str:
    """`[0, 1, 2, 7]` as `0-2,7`, as Slurm writes it."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(f"{a:0{width}}" if a == b else f"{a:0{width}}-{b:0{width}}" for a, b in runs)


@given(indices, names)
def test_folded_indices_come_back_whatever_they_are(found: list[int], kind: str) -> None:
    text = f"gpu:{kind}:{len(found)}(IDX:{folded(found)})"
    assert gpus(gres(text)) == (len(found), tuple(found), kind)


@given(names, st.sets(st.integers(0, 999), min_size=1, max_size=30).map(sorted), st.integers(1, 5))
def test_folded_hosts_come_back_with_their_width(prefix: str, found: list[int], width: int) -> None:
    assert hosts(f"{prefix}[{folded(found, width)}]") == tuple(f"{prefix}{n:0{width}}" for n in found)


@given(st.text(alphabet="gpu01[](),-:=IDX/N A", max_size=40))
def test_no_text_whatever_raises_anything_but_a_value_error(text: str) -> None:
    for read in (hosts, gres, numbers, split, tres):
        with suppress(ValueError):
            read(text)
