"""The certificate that /metrics is served with."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from unidle_agent.errors import SettingError

log = logging.getLogger("unidle.agent")


class Certificate:
    """A certificate chain and its key; a renewed file is taken up without a restart.

    `key_file` may be empty where the key is in `cert_file`. Raises SettingError where they do not load.
    """

    def __init__(self, cert_file: str, key_file: str = "") -> None:
        self._files = tuple(Path(file) for file in (cert_file, key_file) if file)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen = self._stamps()
        try:
            self._load()
        except OSError as error:
            raise SettingError(
                "agent.tls_cert_file",
                f"a PEM file with a certificate, and its key there or in tls_key_file ({error})",
                ", ".join(map(str, self._files)),
                "settings",
            ) from error

    def renew(self) -> None:
        """Load the files anew if they have changed; a pair that does not load leaves the old one."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._load()
        except OSError as error:
            log.warning("the renewed certificate does not load, keeping the old one: %s", error)
        else:
            log.info("took up the renewed certificate %s", self._files[0])

    def _load(self) -> None:
        # Never ask on a terminal for the password of an encrypted key: that would hang a daemon.
        self.context.load_cert_chain(self._files[0], self._files[-1], password=lambda: b"")

    def _stamps(self) -> tuple[int, ...]:
        return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in self._files)
