"""How the programs of this folder write their figures."""

from __future__ import annotations

from typing import Any


def rounded(value: Any) -> Any:
    """Every float in it to four digits: all that a run on a busy machine is good for."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
