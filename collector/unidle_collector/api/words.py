"""Parameters that several endpoints have, with the words on them in the schema."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

MOST_WINDOW_S = 8 * 24 * 3600.0
MOST_TEXT = 500

WindowS = Annotated[
    float, Query(gt=0, le=MOST_WINDOW_S, description="seconds up to now, in event time", examples=[3600])
]
LongWindowS = Annotated[
    float,
    Query(gt=0, le=4000 * 24 * 3600.0, description="seconds up to now, in event time", examples=[86400]),
]
StepS = Annotated[
    float,
    Query(
        ge=0,
        le=MOST_WINDOW_S,
        description="seconds that one point stands for; as long as 1,500 points need where that is longer",
        examples=[60],
    ),
]
Node = Annotated[
    str, Query(max_length=MOST_TEXT, description="only this node; empty: all", examples=["gpu-07"])
]
FieldName = Annotated[
    str, Query(max_length=MOST_TEXT, description="a field of docs/telemetry.md", examples=["sm_active_ratio"])
]
