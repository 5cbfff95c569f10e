"""A day without a collector fits the spool as it is by default."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from unidle_agent.batcher import Batcher
from unidle_agent.config import AgentSettings
from unidle_agent.fields import COLUMNS, Field
from unidle_agent.sample import GpuReading, Tick, Value
from unidle_agent.spool import SEGMENTS, Spool
from unidle_agent.wire import GpuFacts, encode

GPUS = 8
DAY_S = 86400
BATCHES = 24
START_NS = 1_800_000_000 * 10**9
CONSTANT = {"memory_total_bytes", "power_limit_w", "host_memory_total_bytes"}
"""Of these nobody expects noise."""
SPAN = {"1": 1.0, "W": 700.0, "Hz": 2e9, "Cel": 60.0, "By": 80e9, "By/s": 900e9, "s": 3.0}
"""How far the gauges of a unit move, in that unit; those of other units move by 64."""
MOST_PER_S = {"By": 50 * 10**9, "s": 10**9, "J": 700 * 10**3}
"""The most that counters of a unit grow in a second, in their resolution; others grow by up to 1000."""


def moved(spec: Field, before: Value | None, noise: random.Random) -> Value:
    """The next value: a gauge is anything in its span, at its resolution, a counter grows by anything."""
    if spec.name in CONSTANT:
        return 7e10
    if spec.kind == "counter":
        most = min(MOST_PER_S.get(spec.unit, 1000), round(1 / spec.resolution) * 50 * 10**9)
        return int(before or 10**15) + noise.randrange(most)
    if spec.kind == "state":
        return 0 if spec.name == "gpu_state" else noise.choice((0, 4))
    steps = noise.randrange(1 + round(SPAN.get(spec.unit, 64.0) / spec.resolution))
    return steps * spec.resolution


def test_a_day_of_eight_gpus_at_one_hertz_fits_though_every_value_is_noise(
    tmp_path: Path,
) -> None:
    settings = AgentSettings()
    noise = random.Random(20261122)
    facts = [GpuFacts(f"GPU-{number:036d}", number, "NVIDIA H100 80GB HBM3") for number in range(GPUS)]
    gpus: list[dict[str, Value]] = [{} for _ in facts]
    host: dict[str, Value] = {}
    batcher = Batcher("node-0001", settings.period_s, settings.batch_s)
    spool = Spool(tmp_path, settings.spool_max_bytes, settings.spool_max_age_s)
    sizes = []
    for second in range(round(1 + BATCHES * settings.batch_s)):
        for spec in COLUMNS.values():
            if spec.scope == "host":
                host[spec.name] = moved(spec, host.get(spec.name), noise)
                continue
            for values in gpus:
                values[spec.name] = moved(spec, values.get(spec.name), noise)
        rows = tuple(GpuReading(known, dict(values)) for known, values in zip(facts, gpus, strict=True))
        for batch in batcher.add(Tick(START_NS + second * 10**9, rows, dict(host), ())):
            before = spool.size_bytes
            spool.append(encode(replace(batch, boot=spool.boot, seq=spool.next_seq, sent_ns=START_NS)))
            if len(batch.times_ns) > 1:  # the first has the facts, and one row
                sizes.append(spool.size_bytes - before)
    spool.close()
    assert len(sizes) == BATCHES
    a_day = sum(sizes) / BATCHES * DAY_S / settings.batch_s
    fits = settings.spool_max_bytes * (1 - 1 / SEGMENTS)  # it drops one segment at a time
    print(f"{len(COLUMNS)} columns of noise: {a_day / 2**20:.0f} MiB a day, {fits / 2**20:.0f} MiB fit")
    assert a_day < fits
