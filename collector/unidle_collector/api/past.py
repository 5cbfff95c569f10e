"""What was: fields over time, and quantiles over the life of a job."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import pyarrow as pa
from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter

from unidle_collector import over_time
from unidle_collector.api import arrow
from unidle_collector.api.desk import Desk
from unidle_collector.api.forms import ERRORS, LISTED, MISSING, reply, wants_arrow
from unidle_collector.api.words import MOST_TEXT, FieldName, LongWindowS, StepS
from unidle_collector.model import FleetSeries, JobQuantile, Series

NodeName = Annotated[str, Query(max_length=MOST_TEXT, description="name of the node", examples=["gpu-07"])]
GpuName = Annotated[
    str,
    Query(max_length=MOST_TEXT, description="UUID of the GPU; of a host's field, empty", examples=["GPU-7f"]),
]
JobName = Annotated[str, Query(max_length=MOST_TEXT, description="name of the job", examples=["4711"])]
Share = Annotated[float, Query(gt=0, lt=1, description="0.95 is p95", examples=[0.95])]
Simulated = Annotated[bool, Query(description="of the simulated GPUs instead of the real ones")]


def routes(desk: Desk) -> APIRouter:
    """Everything over a window but the accounts."""
    router = APIRouter(prefix="/api/v1", tags=["past"], responses=ERRORS)
    live = desk.live

    @router.get(
        "/series",
        response_model=Series,
        responses={200: {"content": LISTED[200]["content"], "description": "the series"}},
    )
    async def series(
        request: Request,
        node: NodeName,
        field: FieldName,
        gpu: GpuName = "",
        window_s: LongWindowS = 3600.0,
        step_s: StepS = 0.0,
    ) -> Response:
        """One field of one GPU (or of the host, with no gpu) over time.

        As Arrow: `time_ns`, `value`, `low` and `high`, and the rest in the metadata.
        """
        new = await desk.ask(lambda: over_time.recent(live, node, gpu, field, window_s))
        as_arrow = wants_arrow(request)

        def finish() -> bytes:
            found = over_time.series(live.series, new, node, gpu, step_s)
            return _series_stream(found) if as_arrow else SERIES.dump_json(found)

        return reply(request, await desk.beside(finish), as_arrow)

    @router.get("/fleet/series")
    async def fleet_series(
        field: FieldName,
        window_s: LongWindowS = 24 * 3600.0,
        step_s: StepS = 60.0,
        simulated: Simulated = False,
    ) -> FleetSeries:
        """One field of all GPUs together over time, from the stored roll-ups; real and simulated apart.

        Rows become roll-ups within three minutes: the newest ones are not in them yet.
        """
        now_ns = await desk.ask(lambda: live.window.time_ns or live.clock_ns())
        ask = partial(over_time.fleet_series, live.series, field, now_ns + 1, window_s, step_s, simulated)
        return await desk.beside(ask)

    @router.get("/quantile", responses=MISSING)
    async def quantile(job: JobName, field: FieldName, share: Share = 0.95) -> JobQuantile:
        """A quantile of one gauge over all that is kept of a job's life, up to the last minutes."""
        return await desk.beside(lambda: over_time.job_quantile(live.series, job, field, share))

    return router


SERIES = TypeAdapter(Series)


def _series_stream(found: Series) -> bytes:
    columns = {
        "time_ns": pa.array(found.times_ns, pa.int64()),
        "value": pa.array(found.values, pa.float64()),
        "low": pa.array(found.low, pa.float64()),
        "high": pa.array(found.high, pa.float64()),
    }
    about = {
        name: str(getattr(found, name)) for name in ("node", "gpu", "field", "unit", "step_s", "simulated")
    }
    return arrow.stream(pa.table(columns).replace_schema_metadata(about))
