"""HTML in which every text that is not HTML already is escaped: names of jobs and nodes are data.

el("p", "job ", el("b", name), cls="u-note")
"""

from __future__ import annotations

import html
import unicodedata


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def el(name: str, *children: str, cls: str = "", **attributes: str) -> Html:
    """An element; children and attribute values that are not `Html` are escaped."""
    shown = {"class": cls, **attributes} if cls else attributes
    inside = "".join(f' {key.replace("_", "-")}="{html.escape(value)}"' for key, value in shown.items())
    return Html(f"<{name}{inside}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Several pieces one after the other."""
    return Html(
        "".join(child if isinstance(child, Html) else html.escape(plain(child)) for child in children)
    )


def plain(text: str) -> str:
    """`text` without control and direction-changing characters, which could disguise a name."""
    return "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
