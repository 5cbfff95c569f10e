"""The HTTP face of the collector: one module per subject, put together in `app`."""

from unidle_collector.api.app import create_app, reading_app

__all__ = ["create_app", "reading_app"]
