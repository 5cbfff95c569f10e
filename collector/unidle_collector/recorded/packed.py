"""The bytes of a file, unpacked where they are packed, whatever the file is called."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from unidle_collector.recorded.rows import RecordingError

MAX_BYTES = 4 * 1024**3
"""Most bytes that a text file may have, unpacked: it is held in memory."""


PACKINGS: dict[bytes, tuple[str, Callable[[IO[bytes]], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda raw: gzip.GzipFile(fileobj=raw)),
    b"\x28\xb5\x2f\xfd": ("zstd", lambda raw: pa.CompressedInputStream(raw, "zstd")),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\x00": ("xz", lzma.LZMAFile),
}
"""First bytes -> name, what reads a file of it unpacked."""


def unpacked(path: Path) -> bytes:
    """All of a file; raises RecordingError where it is torn or too large, OSError where it is unreadable."""
    with path.open("rb") as file:
        head = file.read(8)
    for magic, (name, opened) in PACKINGS.items():
        if head.startswith(magic):
            try:
                with path.open("rb") as raw, opened(raw) as stream:
                    data = bytes(stream.read(MAX_BYTES + 1))
            except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError, ValueError) as error:
                raise RecordingError(f"{path}: expected a whole {name} file: {error}") from error
            break
    else:
        if path.stat().st_size > MAX_BYTES:
            raise _too_large(path)
        data = path.read_bytes()
    if len(data) > MAX_BYTES:
        raise _too_large(path)
    return data


def _too_large(path: Path) -> RecordingError:
    return RecordingError(f"{path}: expected at most {MAX_BYTES:,} bytes: split it, or use Parquet")
