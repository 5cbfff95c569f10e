"""Facts of the world about GPU models, from data/gpus.toml: prices, thermal limits, references."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of one GPU model; None where nothing is."""

    match: str
    """Part of the model name that the driver gives."""
    source: str
    eur_per_h: float | None = None
    slowdown_margin_c: float | None = None
    limit_c: float | None = None
    memory_gb: float | None = None
    bf16_tflops: float | None = None
    """Dense, on tensor cores."""


@dataclass(frozen=True, slots=True)
class ReferenceActivity:
    """Default e_ref (docs/accounting.md) by grade, ratios 0-1."""

    sm: float
    util: float
    tensor: float
    source: str


@dataclass(frozen=True, slots=True)
class Electricity:
    """Price of energy."""

    eur_per_kwh: float
    source: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The whole file."""

    reference: ReferenceActivity
    electricity: Electricity
    models: tuple[Model, ...]

    def model(self, name: str) -> Model | None:
        """The entry of a GPU by the name that the driver gives, None where there is none."""
        return next((entry for entry in self.models if entry.match in name), None)


@cache
def catalogue() -> Catalogue:
    """Read the file once."""
    document = tomllib.loads(files("unidle_collector").joinpath("data/gpus.toml").read_text(encoding="utf-8"))
    return Catalogue(
        reference=ReferenceActivity(**document["reference"]),
        electricity=Electricity(**document["electricity"]),
        models=tuple(Model(**entry) for entry in document["model"]),
    )
