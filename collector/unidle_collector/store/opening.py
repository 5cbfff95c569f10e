"""Open the store as the settings of the collector say."""

from __future__ import annotations

from unidle_collector.settings import CollectorSettings
from unidle_collector.store import KeepRollups, State, Store, open_state


def open_store(settings: CollectorSettings) -> Store:
    """The store of `settings.data_dir`, for this process alone; raises StoreError."""
    return Store(
        settings.data_dir,
        keep_days=settings.keep_days,
        keep_bytes=int(settings.keep_gb * 1e9),
        keep_rollups=KeepRollups(
            days_10s=settings.keep_10s_days,
            days_1m=settings.keep_1m_days,
            days_1h=settings.keep_1h_days,
            most_bytes=int(settings.keep_rollups_gb * 1e9),
        ),
        keep_state_days=settings.keep_state_days,
        links=None if settings.series == "embedded" else settings.data_dir / "series" / "queue",
    )


def open_shared_state(settings: CollectorSettings) -> State:
    """The database of incidents and tokens: that of `state_url`, else the store's own in `data_dir`."""
    return open_state(settings.state_url.reveal() or settings.data_dir / "state.sqlite")
