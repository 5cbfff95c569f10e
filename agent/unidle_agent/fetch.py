"""One HTTP exchange with a deadline over all of it and a bound on what comes back.

http.client's timeout holds for each socket call alone, so a peer that drips one byte a second would
hold a thread for ever; here a timer cuts the connection. Redirects and proxies are never followed.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from unidle_agent.errors import SettingError, UnidleError


class FetchError(UnidleError):
    """The exchange did not come to an answer: refused, cut, late or against TLS."""


class LateError(FetchError):
    """The answer did not come within the deadline."""


class TooBigError(FetchError):
    """The answer is bigger than it may be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool
    """False where the connection ended before the announced end of the body."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to, taken from a URL."""

    secure: bool
    host: str
    port: int
    path: str
    """Path with query, without a slash at the end."""

    @property
    def loopback(self) -> bool:
        """Does the name alone say that traffic stays on this machine."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def target(url: str, key: str) -> Target:
    """Read `url`; raises SettingError naming the setting `key`. Never shows a password in it."""
    expected = "an address that begins with http:// or https:// and names a host"
    where = "the command line" if key.startswith("--") else "settings"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingError(key, expected, url.rpartition("@")[2], where) from error
    if parts.username is not None or parts.password is not None:
        raise SettingError(key, "a URL without user and password in it", parts.hostname, where)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(key, expected, url, where)
    secure = parts.scheme == "https"
    path = parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else "")
    return Target(secure, parts.hostname, port or (443 if secure else 80), path)


def connection(
    to: Target, timeout_s: float, ca_file: str = "", cert_file: str = "", key_file: str = ""
) -> http.client.HTTPConnection:
    """A connection, not yet open; TLS is verified against `ca_file` or the system's authorities.

    `cert_file` is shown to a server that asks who we are. Raises FetchError for a file that is none.
    """
    if not to.secure:
        return http.client.HTTPConnection(to.host, to.port, timeout=timeout_s)
    import ssl  # 5 MB that an agent on a plain loopback does not need

    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise FetchError(f"{ca_file}: expected a PEM file of certificate authorities: {error}") from error
    if cert_file:
        try:
            context.load_cert_chain(cert_file, key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise FetchError(
                f"{cert_file}: expected a PEM file of a certificate and its key: {error}"
            ) from error
    return http.client.HTTPSConnection(to.host, to.port, timeout=timeout_s, context=context)


def exchange(
    over: http.client.HTTPConnection,
    method: str,
    path: str,
    *,
    deadline_s: float,
    max_bytes: int,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """Send one request and read its answer; raises FetchError, after which `over` is closed."""
    end = time.monotonic() + deadline_s
    expired = threading.Event()
    try:
        if over.sock is None:
            over.timeout = deadline_s
            over.connect()
        with _cut_off(over, end - time.monotonic(), expired):
            over.request(method, path or "/", body=body, headers=dict(headers or {}))
            answer = _read(over.getresponse(), max_bytes)
    except (OSError, http.client.HTTPException, ValueError, FetchError) as error:
        over.close()
        if expired.is_set() or isinstance(error, TimeoutError):
            raise LateError(f"no whole answer within {deadline_s:g} s") from error
        if isinstance(error, FetchError):
            raise
        raise FetchError(f"{_plain(error)}") from error
    if expired.is_set():
        over.close()
        raise LateError(f"no whole answer within {deadline_s:g} s")
    if not answer.whole:
        over.close()
    return answer


def get(url: str, key: str, *, deadline_s: float, max_bytes: int, **headers: str) -> Answer:
    """GET `url` over a connection of its own; raises FetchError, and SettingError for a bad URL."""
    to = target(url, key)
    over = connection(to, deadline_s)
    try:
        return exchange(over, "GET", to.path, deadline_s=deadline_s, max_bytes=max_bytes, headers=headers)
    finally:
        over.close()


@contextlib.contextmanager
def _cut_off(over: http.client.HTTPConnection, left_s: float, expired: threading.Event) -> Iterator[None]:
    sock = over.sock

    def cut() -> None:
        expired.set()
        with contextlib.suppress(OSError):
            # The plain socket's shutdown also under TLS: the reading thread sees the end, not half a state.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, left_s), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read(response: http.client.HTTPResponse, max_bytes: int) -> Answer:
    announced = response.length
    if announced is not None and announced > max_bytes:
        raise TooBigError(f"expected at most {max_bytes} bytes, {announced} are announced")
    whole = True
    try:
        body = response.read(max_bytes + 1)
    except http.client.IncompleteRead as error:
        body, whole = error.partial, False
    if len(body) > max_bytes:
        raise TooBigError(f"expected at most {max_bytes} bytes, came more")
    if announced is not None and len(body) < announced:
        whole = False
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body, whole)


def _plain(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved: {error.strerror}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
