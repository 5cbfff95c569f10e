"""Prometheus text of the whole site: findings, accounts and means of all shards, each once.

Findings are those of the site: what several shards find about one job counts once. Counters have a label
`shard`, and begin anew where another collector takes the shard up, as `rate` and `increase` expect: summed
into one series, a shard that changes hands would look like a restart of all of them.
"""

from __future__ import annotations

import asyncio

from unidle_agent.shards import SHARDS
from unidle_collector import fleet_metrics
from unidle_collector.api.scraped import SUMS
from unidle_collector.fleet_metrics import Sums, add_family
from unidle_collector.shards.view.asking import Reader
from unidle_collector.shards.view.site import Site

WINDOW_S = 3600.0


async def page_of(site: Site, reader: Reader) -> str:
    """The page; raises NoAnswerError where no shard answers, so that nothing looks like an empty fleet."""
    findings = await site.findings(reader)
    fleet, found, queue = await asyncio.gather(
        site.fleet(reader, WINDOW_S, findings), site.asking.records(reader, Sums, SUMS), site.queue(reader)
    )
    lines: list[str] = []
    up = [(f'{{shard="{shard}"}}', int(shard not in reader.gaps)) for shard in range(SHARDS)]
    text = "1 where the shard answers; of one that does not, GPUs are unknown and counters are not here."
    add_family(lines, "unidle_site_shard_up", "gauge", text, up)
    away = sum(shard.gpus for shard in await site.away(reader))
    text = "GPUs of shards that do not answer, by their last checkpoints; in state unknown."
    add_family(lines, "unidle_site_gpus_away", "gauge", text, [("", away)])
    fleet_metrics.add_fleet(lines, fleet)
    fleet_metrics.add_gpus(lines, fleet.gpus - away - fleet.simulated_gpus, fleet.simulated_gpus)
    fleet_metrics.add_findings(lines, findings)
    parts = {f'shard="{shard}",': sums for shard, sums in sorted(found.items())}
    fleet_metrics.add_accounts(lines, parts)
    fleet_metrics.add_means(lines, fleet_metrics.together(list(found.values())))
    fleet_metrics.add_queue(lines, queue)
    return "\n".join(lines) + "\n"
