"""Why a connection could not be opened, if TLS is the reason. Called after a call has failed, on its thread.

gRPC core reports the error of one attempt only: for a name with several addresses it may be that of an address on which nothing
listens. With TLS 1.3 it does not show why a server rejects the certificate of a client, and it does not see that a server uses
TLS. So if its text is not sufficient, one handshake without gRPC finds out.
"""

import re
import socket
import ssl
from typing import NamedTuple

from digitserve.credentials import Credentials, explain_handshake
from digitserve.errors import CredentialsError

PROBE_S = 0.5
"""Longest wait for each step of the handshake."""

ALERT_S = 0.1
"""Longest wait for an alert after the handshake: with TLS 1.3, a server checks the client's certificate last."""

_HOST_PORT = re.compile(r"(\[[^\]]+\]|[^:/]+):(\d+)")
NOT_CONNECTED = ("connections to all backends failing", "failed to connect to all addresses")
"""Starts of gRPC core's text if no connection could be opened: of ``round_robin``, and of ``pick_first``."""

_ENDED = re.compile("Socket closed|Connection reset|Unwrap failed")

_REJECTED = (
    "the server ended the connection after the TLS handshake; it requires a certificate of the client, or does not accept it: "
    "pass certificate and key that its authority signed"
)
_USES_TLS = "the server uses TLS; use https:// in the address, or pass ca"


class Security(NamedTuple):
    """How a channel connects.

    Attributes:
        target: of ``parse_address``.
        tls: whether it uses TLS.
        credentials: for TLS.
    """

    target: str
    tls: bool
    credentials: Credentials

    def explain(self, details: str) -> str:
        """Return what gRPC core's text of a failed connection means and what to do; "" if TLS is not the reason. No I/O."""
        if not self.tls or not details.startswith(NOT_CONNECTED):
            return ""
        return explain_handshake(details) or (_REJECTED if _ENDED.search(details) else "")

    def investigate(self, details: str) -> str:
        """Do the same, with a handshake if the text is not sufficient: usually milliseconds, at most ``PROBE_S`` per step."""
        if not details.startswith(NOT_CONNECTED):
            return ""
        if self.tls:
            return explain_handshake(details) or explain_handshake(self._try_handshake().error) or self.explain(details)
        return _USES_TLS if _ENDED.search(details) and self._try_handshake().is_tls else ""

    def _try_handshake(self) -> "_Attempt":
        found = _HOST_PORT.fullmatch(self.target)
        if found is None:
            return _Attempt("", is_tls=False)
        host, port = found[1].strip("[]"), int(found[2])
        try:
            context = self.credentials.ssl_context("h2")
            if not self.tls:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, CredentialsError):
            return _Attempt("", is_tls=False)
        for family, kind, protocol, _, address in addresses:
            with socket.socket(family, kind, protocol) as plain:
                plain.settimeout(PROBE_S)
                try:
                    plain.connect(address)
                except OSError:
                    continue
                return _handshake(plain, context, host)
        return _Attempt("", is_tls=False)


class _Attempt(NamedTuple):
    """The result of a handshake.

    Attributes:
        error: text of OpenSSL; "" without an error.
        is_tls: whether the server answered in TLS.
    """

    error: str
    is_tls: bool


def _handshake(plain: socket.socket, context: ssl.SSLContext, host: str) -> _Attempt:
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            secure.settimeout(ALERT_S)
            try:
                secure.recv(1)
            except TimeoutError:
                pass
            except OSError as error:
                return _Attempt(str(error), is_tls=True)
            return _Attempt("", is_tls=True)
    except OSError as error:
        return _Attempt(str(error), is_tls="alert" in str(error).lower())
