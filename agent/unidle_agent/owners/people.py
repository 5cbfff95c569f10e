"""The name of a user id: the same person must have one name, whichever source met them."""

from __future__ import annotations

import functools
import pwd


@functools.lru_cache(maxsize=1024)
def user_name(uid: int) -> str:
    """The login name, or the number where this node knows none. May ask a directory server: blocks."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
