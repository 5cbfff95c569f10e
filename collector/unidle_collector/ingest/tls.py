"""Client certificates: uvicorn's protocol, with the names of the verified peer in the request's state."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CLIENT_NAMES = "client_names"
"""Key of the request's state: a frozenset of the names in the peer's certificate."""


class ClientCertProtocol(HttpToolsProtocol):
    """Puts who the peer is into `scope["state"]`; TLS has verified it, or there is no certificate."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called once for each connection, after the handshake."""
        super().connection_made(transport)
        names = certificate_names(transport.get_extra_info("peercert"))
        if names:
            self.app_state = {**self.app_state, CLIENT_NAMES: names}


def certificate_names(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """DNS names and the common name of a certificate, as `ssl` gives it."""
    if not certificate:
        return frozenset()
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    others = [value for key, value in certificate.get("subjectAltName", ()) if key == "DNS"]
    return frozenset((*common, *others))
