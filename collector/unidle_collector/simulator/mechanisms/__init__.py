"""How GPU time is lost, and how it is not: one file per mechanism, each with several ways it comes about.

A variant is data: ranges of what a GPU and its host show, and how that goes on and off. `trial.py` draws
from the ranges and plays one job of a variant, with the truth of every GPU second. Variants belong to one
of two sets: `tuning` may be looked at when thresholds are chosen, `held_out` is for scoring only. No
held-out variant shares all its ranges with a tuning one of its mechanism; a test holds that.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from unidle_collector.simulator.mechanisms.variant import Set, Variant


@cache
def variants(which: Set) -> tuple[Variant, ...]:
    """All of one set, in order of file and place."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    modules = (import_module(f"{__name__}.{name}") for name in names)
    every = (variant for module in modules for variant in getattr(module, "VARIANTS", ()))
    return tuple(variant for variant in every if variant.set == which)
