"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long one example takes says how busy the machine is, never whether the code is right.
settings.register_profile("unidle", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unidle")
