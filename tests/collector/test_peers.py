"""The comparison of engines: everyone gets the same values, and the rules mean the same to everyone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from benchmarks.generator import FIELDS, GPUS_PER_NODE, PATTERN_S, Noise
from benchmarks.peers import Measured, Sizes, agreement
from benchmarks.peers_engines import ask, pass_over
from benchmarks.peers_feed import (
    BATCH_S,
    LABELS,
    MOMENT,
    Columns,
    Prepared,
    columns_of,
    fields,
    in_a_line,
    labels,
    on_a_page,
)
from benchmarks.peers_rules import PROMQL, WINDOW_S, numpy_pass, predicted
from tests.collector.prometheus_server import (
    END_S,
    Line,
    needs_prometheus,
    prometheus,
    victoria_metrics,
    write_past,
)

from unidle_agent.fields import BY_NAME

SECOND = 67
"""Of the second lap, in the middle of a batch."""


def pushed(name: str, node: int, second: int) -> list[float]:
    """[GPUs] in base units, from the bytes that unidle's generator sends."""
    k, within = divmod(second, BATCH_S)
    spec = BY_NAME[name]
    values = np.frombuffer(Noise(BATCH_S).columns(node, k)[name], dtype=spec.dtype)
    row = values.reshape(BATCH_S, GPUS_PER_NODE)[within]
    return [float(v) * (spec.resolution if spec.kind == "counter" else 1.0) for v in row]


@pytest.mark.parametrize("name", ["energy_j", "power_w", "memory_used_bytes", "power_cap_s", "last_xid"])
def test_a_page_and_a_line_hold_what_a_push_holds(name: str) -> None:
    node = 3
    [(gauges, counters)] = Prepared("pages", SECOND + 1).second(node, SECOND)
    shown = re.findall(rf"^gpu_{name}{{.}} (\S+) {MOMENT.decode()}$", (gauges + counters).decode(), re.M)
    lines = [b",".join(parts).decode() for parts in Prepared("lines", SECOND + 1).second(node, SECOND)]
    sent = [dict(pair.split("=") for pair in line.split(","))[name] for line in lines]

    assert shown == sent
    assert np.array(sent, dtype=float) == pytest.approx(pushed(name, node, SECOND), rel=1e-7)


def test_every_field_is_on_every_page() -> None:
    [(gauges, counters)] = Prepared("pages", 1).second(0, 0)
    assert (gauges + counters).count(MOMENT) == len(FIELDS) * GPUS_PER_NODE


PAGES = Path(__file__).parents[3] / "shared" / "data" / "dcgm-pages"


def test_a_gpu_has_the_labels_that_it_has_on_a_real_exporters_page() -> None:
    path = PAGES / "2xT4_one_pod.prom"
    if not path.exists():
        pytest.skip(f"{path}: the pages of real exporters are not here")
    first = re.search(r"^DCGM_FI_DEV_SM_CLOCK{(.*)}", path.read_text(), re.M)
    assert first
    real = dict(re.findall(r'(\w+)="([^"]*)"', first[1]))
    ours = labels(0)[0]

    assert list(ours) == list(real)
    longer = len(on_a_page(ours)) - len(first[1])
    assert longer < 0, "what a peer is given is no larger than what it would scrape"


def test_a_page_and_a_line_have_the_same_labels_and_no_gpu_those_of_another() -> None:
    for of in labels(5):
        shown = dict(re.findall(r'(\w+)="([^"]*)"', on_a_page(of).decode()))
        pairs = re.split(r"(?<!\\),", in_a_line(of).decode())
        sent = dict(pair.replace("\\ ", " ").split("=") for pair in pairs)
        assert shown == sent == of
        assert set(of) == set(LABELS)
    everyone = [on_a_page(of) for number in range(8) for of in labels(number)]
    assert len(set(everyone)) == len(everyone)


def test_a_prediction_is_that_of_a_fitted_line() -> None:
    values = np.random.default_rng(1).normal(50e9, 1e9, (WINDOW_S, 3))
    x = np.arange(WINDOW_S)
    lines = np.polyfit(x, values, 1)
    assert predicted(values) == pytest.approx(lines[1] + lines[0] * (WINDOW_S - 1 + 0.5 + 3600))


NODES = 24
NAMES = sorted(set(re.findall(r"gpu_(\w+_(?:ratio|bytes|hz|c))", " ".join(PROMQL.values()))))
FIRST_S = END_S - PATTERN_S + 4
"""Where `write_past` puts the first of PATTERN_S samples."""


def minute() -> dict[int, list[Columns]]:
    """Node -> [seconds] what the rules look at, as text."""
    noise, batches = Noise(BATCH_S), range(PATTERN_S // BATCH_S)
    return {
        node: [columns for k in batches for columns in columns_of(noise, node, k, NAMES)]
        for node in range(NODES)
    }


@contextmanager
def prometheus_with(read: dict[int, list[Columns]], folder: Path) -> Iterator[str]:
    needs_prometheus()
    lines = [
        Line(
            f"gpu_{name}",
            {"Hostname": f"node-{node:05d}", "gpu": str(gpu)},
            lambda second, node=node, gpu=gpu, name=name: float(read[node][second][name][gpu]),  # type: ignore[misc]
        )
        for name in NAMES
        for node in range(NODES)
        for gpu in range(GPUS_PER_NODE)
    ]
    write_past(folder / "data", lines, PATTERN_S, 1, END_S)
    with prometheus(folder / "data") as url:
        yield url


@contextmanager
def victoria_metrics_with(read: dict[int, list[Columns]], folder: Path) -> Iterator[str]:
    lines = [
        f"gpu,Hostname=node-{node:05d},gpu={gpu} {shown.decode()} {FIRST_S + second}\n"
        for node, seconds in read.items()
        for second, columns in enumerate(seconds)
        for gpu, shown in enumerate(fields(columns))
    ]
    with victoria_metrics(folder / "data") as url:
        port = urlsplit(url).port or 0
        ask(port, "/write", "".join(lines).encode(), precision="s")
        ask(port, "/internal/force_flush")
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("engine_with", [prometheus_with, victoria_metrics_with])
def test_promql_and_numpy_find_the_same_gpus_on_both_sides_of_every_threshold(
    engine_with: Callable[..., AbstractContextManager[str]], tmp_path: Path
) -> None:
    read = minute()
    with engine_with(read, tmp_path) as url:
        asked = pass_over(urlsplit(url).port or 0, FIRST_S + PATTERN_S - 1)

    window = {
        name: np.array(
            [[float(v) for node in range(NODES) for v in read[node][s][name]] for s in range(PATTERN_S)]
        )[-WINDOW_S:]
        for name in NAMES
    }
    for rule, is_true in numpy_pass(window.__getitem__).items():
        gpus = {(f"node-{g // GPUS_PER_NODE:05d}", int(g % GPUS_PER_NODE)) for g in np.flatnonzero(is_true)}
        assert asked[rule] == gpus, rule
        assert 0 < len(gpus) < NODES * GPUS_PER_NODE, rule


def measured(starved: set[int], hot: set[int]) -> Measured:
    """A run with one pass that found some GPUs of one node."""
    named = {"starved": starved, "throttled": {1}, "thermal": hot, "oom_risk": set()}
    found = {0: {rule: frozenset(("node-00000", gpu) for gpu in gpus) for rule, gpus in named.items()}}
    return Measured(
        version="1",
        load_cpu_s=2.5,
        load_values=10**6,
        final_cpu_s=0.5,
        rules_cpu_s_per_pass=0.25,
        passes=2,
        rss_mib=100.0,
        size_bytes=3 * 10**6,
        values=10**6,
        found=found,
    )


def test_engines_agree_only_where_each_names_the_same_gpus() -> None:
    runs = {"unidle": [measured({1, 2}, {3})], "prometheus": [measured({1, 4}, {3})]}
    assert agreement(runs, 1) == {"starved": False, "throttled": True, "oom_risk": True}


def test_engines_do_not_agree_on_throttled_where_they_differ_in_heat() -> None:
    runs = {"unidle": [measured({1}, {3})], "prometheus": [measured({1}, set())]}
    assert agreement(runs, 1)["throttled"] is False


def test_a_pass_that_one_engine_did_not_get_to_is_no_agreement() -> None:
    runs = {"unidle": [measured({1}, {3})], "prometheus": [measured({1}, {3})]}
    assert not any(agreement(runs, 2).values())


def test_ingest_is_the_load_without_its_passes_and_the_final_form() -> None:
    one = measured(set(), set())
    assert one.ingest_cpu_s_per_million_values == pytest.approx(2.0 + 0.5)
    assert one.cpu_s_per_million_values(values_per_s=1000) == pytest.approx(2.5 + 0.25 / 15 * 1000)
    assert one.bytes_per_value == 3.0


def test_every_pass_has_a_whole_window_before_it_and_time_after_it() -> None:
    passes = Sizes(gpus=8, seconds=60).passes()
    assert passes == [54, 69]
