"""Settings: one TOML file, overridden by environment variables, overridden by flags.

A role declares a frozen dataclass with `setting(...)` fields. One name serves in all three places:
field `push_url` of section `agent` is `push_url` in `[agent]`, `UNIDLE_AGENT_PUSH_URL` and
`--push-url`. A secret has no flag of its own (command lines are public): give it in the environment,
or as a file by `NAME_FILE`, `name_file` or `--name-file`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from unidle_agent.errors import SettingError, UsageError, nearest, reason

DEFAULT_FILES = ("unidle.toml", "/etc/unidle/unidle.toml")
METAVARS: dict[Any, str] = {str: "TEXT", int: "N", float: "NUMBER", Path: "PATH"}
TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}

T = TypeVar("T")


class Secret:
    """A text that never shows itself."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: for the one place that sends or compares it."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)" if self._text else "Secret()"


def setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a settings class: its default, what it means (with the unit), and its bounds."""
    return dataclasses.field(
        default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices}
    )


def add_flags(parser: argparse.ArgumentParser, cls: type[Any], about: tuple[str, ...] = ("",)) -> None:
    """Give `parser` one flag per field of the settings class `cls` whose name begins with one of `about`, and
    `--config`."""
    parser.allow_abbrev = False  # else `--push-token SECRET` would be taken for --push-token-file
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"TOML file (default: the first of {', '.join(DEFAULT_FILES)} there is)",
    )
    group = parser.add_argument_group("settings (the same names in the TOML file and in the environment)")
    kinds = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.name.startswith(about):
            continue
        kind, meta = kinds[field.name], field.metadata
        shown = "" if kind is Secret else _show(field.default)
        text = (meta["doc"] + (f" (default: {shown})" if shown else "")).replace("%", "%%")
        flag = "--" + field.name.replace("_", "-")
        if kind is Secret:
            group.add_argument(f"{flag}-file", metavar="FILE", default=None, help=f"file that holds: {text}")
        elif kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            metavar = "|".join(meta["choices"]) or METAVARS.get(kind, "LIST")
            group.add_argument(flag, metavar=metavar, default=None, help=text)


def load(
    cls: type[T],
    section: str,
    flags: argparse.Namespace | None = None,
    environ: Mapping[str, str] = os.environ,
) -> T:
    """Build and validate settings `cls` of `[section]`; raises SettingError naming the key."""
    path = _config_path(flags, environ)
    table = _table(path, section) if path else {}
    values: dict[str, Any] = {}
    kinds = get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    known |= {f"{name}_file" for name in known if kinds[name] is Secret}
    for key in table:
        if key not in known:
            hint = nearest(key, known)
            raise SettingError(f"{section}.{key}", f"a known setting{hint}", table[key], str(path))
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        found = _lookup(field.name, section, kinds[field.name], flags, environ, table, path)
        if found is not None:
            raw, where = found
            values[field.name] = _convert(
                f"{section}.{field.name}", kinds[field.name], raw, where, field.metadata
            )
    return cls(**values)


def as_environment(settings: Any, section: str) -> dict[str, str]:
    """The environment that makes another process load the same settings; secrets included."""
    out = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default:
            continue
        text = value.reveal() if isinstance(value, Secret) else _show(value)
        out[_variable(section, field.name)] = text
    return out


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _variable(section: str, name: str) -> str:
    return f"UNIDLE_{section}_{name}".upper()


def _config_path(flags: argparse.Namespace | None, environ: Mapping[str, str]) -> Path | None:
    named = getattr(flags, "config", None) or environ.get("UNIDLE_CONFIG")
    if named:
        if not Path(named).is_file():
            raise SettingError("config", "a readable TOML file", named, "--config or UNIDLE_CONFIG")
        return Path(named)
    return next((Path(name) for name in DEFAULT_FILES if Path(name).is_file()), None)


def _table(path: Path, section: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected a readable UTF-8 file ({reason(error)})") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: expected TOML: {error}") from error
    table = document.get(section, {})
    if not isinstance(table, dict):
        raise SettingError(section, "a table", table, str(path))
    return table


def _lookup(
    name: str,
    section: str,
    kind: Any,
    flags: argparse.Namespace | None,
    environ: Mapping[str, str],
    table: dict[str, Any],
    path: Path | None,
) -> tuple[Any, str] | None:
    """The value that counts for one setting, and where it was found."""
    variable = _variable(section, name)
    flag = getattr(flags, f"{name}_file" if kind is Secret else name, None)
    if kind is Secret:
        if flag is not None:
            where = f"--{name.replace('_', '-')}-file"
            return _read_secret(f"{section}.{name}", flag, where), f"file {flag}"
        if variable in environ:
            return environ[variable], f"environment {variable}"
        if file := environ.get(f"{variable}_FILE"):
            return _read_secret(f"{section}.{name}", file, f"environment {variable}_FILE"), f"file {file}"
        if file := table.get(f"{name}_file"):
            return _read_secret(f"{section}.{name}", file, str(path)), f"file {file}"
    elif flag is not None:
        return flag, "--" + name.replace("_", "-")
    elif variable in environ:
        return environ[variable], f"environment {variable}"
    return (table[name], str(path)) if name in table else None


def _read_secret(key: str, file: str, where: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(key, f"a readable file ({reason(error)})", file, where) from error


def _convert(key: str, kind: Any, raw: Any, where: str, meta: Mapping[str, Any]) -> Any:
    if kind is Secret:
        if not isinstance(raw, str):
            raise SettingError(key, "a text", "***", where)
        return Secret(raw)
    if kind is bool:
        return _to_bool(key, raw, where)
    if kind in (int, float):
        return _to_number(key, kind, raw, where, meta)
    if kind is Path:
        return Path(raw).expanduser()
    if kind is str:
        if not isinstance(raw, str) or (meta["choices"] and raw not in meta["choices"]):
            raise SettingError(key, " | ".join(meta["choices"]) or "a text", raw, where)
        return raw
    items = raw.split(",") if isinstance(raw, str) else raw  # tuple[str, ...]
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise SettingError(key, "a list of texts", raw, where)
    return tuple(item.strip() for item in items if item.strip())


def _to_bool(key: str, raw: Any, where: str) -> bool:
    if isinstance(raw, bool):
        return raw
    text = str(raw).lower()
    if text not in TRUE | FALSE:
        raise SettingError(key, "true or false", raw, where)
    return text in TRUE


def _to_number(
    key: str, kind: type[int] | type[float], raw: Any, where: str, meta: Mapping[str, Any]
) -> float:
    low, high = meta["low"], meta["high"]
    bounds = f" from {low} to {high}" if low is not None and high is not None else ""
    expected = ("a whole number" if kind is int else "a number") + bounds
    try:
        if isinstance(raw, bool) or (kind is int and isinstance(raw, float)):
            raise ValueError
        value = kind(raw)
    except (TypeError, ValueError) as error:
        raise SettingError(key, expected, raw, where) from error
    if value != value or (low is not None and value < low) or (high is not None and value > high):
        raise SettingError(key, expected, raw, where)
    return value
