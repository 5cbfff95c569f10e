"""Can an address be listened on: asked before a server that says it badly, or late, is started."""

from __future__ import annotations

import os
import socket

from unidle_agent.errors import UnidleError


def check_free(bind: str, port: int) -> None:
    """Raises UnidleError where nothing can listen on `bind`:`port` now."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        socket.create_server((bind, port), family=family).close()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)  # its own text has the address again
        raise UnidleError(
            f"cannot listen on {bind}:{port} ({why}): stop what listens there, or choose another "
            "with --port and --bind"
        ) from error
