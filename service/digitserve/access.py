"""Bearer tokens: which callers may use the service.

    native, grpcio, HTTP server ──value of "authorization"──▶ Tokens.admits

Each transport creates ``Tokens`` from the file of the settings, and calls it on its one thread. Tokens are kept as hashes, and
never appear in log lines and errors.
"""

import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from digitserve.certificate import KeyFiles
from digitserve.errors import SettingsError
from digitserve.file_watch import WatchedValue, read_file
from digitserve.protocol.names import HEALTH_SERVICE, Code
from digitserve.protocol.status import Status
from digitserve.settings import Settings, flag, setting_named

MIN_TOKEN_CHARACTERS = 16
"""A random token of 16 characters, each one of 64, cannot be guessed: it has 96 bits."""

MAX_TOKENS = 1_000
"""Most tokens of a file."""

FREE_PREFIX = f"/{HEALTH_SERVICE}/"
"""Start of the paths that need no token: load balancers and platforms query health."""

UNAUTHENTICATED = Status(
    Code.UNAUTHENTICATED,
    "this server requires a token: send the metadata 'authorization: Bearer TOKEN' with a valid one",
)

_FLAG = flag(setting_named("token_file"))
_TOKEN = re.compile(rb"[!-~]+")
# RFC 9110, section 11.6.2 and 11.1: the scheme is case-insensitive.
_CREDENTIALS = re.compile(rb"bearer +([!-~]+)", re.IGNORECASE)


class Tokens(WatchedValue[frozenset[bytes]]):
    """The valid tokens of a service; owned by a transport or the HTTP server.

    Attributes:
        value: SHA-256 of each token. A new object after each change: its identity shows whether an older check is still valid.
    """

    def __init__(self, path: Path, last_valid: frozenset[bytes] | None = None, *, logs: bool = False) -> None:
        """Read the file.

        Args:
            path: of the file.
            last_valid: used if the file is not valid now.
            logs: see ``WatchedValue``.

        Raises:
            SettingsError: the file cannot be used.
        """
        last = None if last_valid is None else lambda: last_valid
        super().__init__("tokens", [path], functools.partial(read_tokens, path), last, logs=logs)

    @classmethod
    def of(
        cls, settings: Settings, last_valid: frozenset[bytes] | None = None, *, logs: bool = False
    ) -> "Tokens | None":
        """Return the tokens that the settings name, None if they name none; see ``__init__``."""
        return None if settings.token_file is None else cls(settings.token_file, last_valid, logs=logs)

    def admits(self, authorization: bytes) -> bool:
        """Return whether a caller may use the service.

        The time does not depend on the number of tokens: otherwise calls with unknown ones could keep a worker busy. It reveals
        nothing about them either: what is looked up is a SHA-256, and a caller cannot choose its bits.

        Args:
            authorization: value of the header field or metadata; empty if the caller sent none.
        """
        credentials = _CREDENTIALS.fullmatch(authorization)
        if credentials is None:
            return False
        return hashlib.sha256(credentials[1]).digest() in self.value


class LastValid(NamedTuple):
    """What the supervisor has last read from valid files, for workers that start while the files are not valid.

    Attributes:
        key_files: of the certificate; None without TLS.
        digests: of the tokens; None without tokens.
    """

    key_files: KeyFiles | None = None
    digests: frozenset[bytes] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content as values that JSON can represent, for ``from_dict`` in another process."""
        files = self.key_files and [None if text is None else text.decode("latin-1") for text in self.key_files]
        return {"key_files": files, "digests": self.digests and [digest.hex() for digest in self.digests]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the content from the values that ``to_dict`` returned."""
        files, digests = values.get("key_files"), values.get("digests")
        if files is not None:
            certificate, key, client_ca = (None if text is None else text.encode("latin-1") for text in files)
            files = KeyFiles(certificate or b"", key or b"", client_ca)
        return cls(files, digests and frozenset(map(bytes.fromhex, digests)))


NOTHING_VALID = LastValid()


def read_tokens(path: Path) -> frozenset[bytes]:
    """Return the SHA-256 of each token in a file: one token per line; blank lines and lines that start with # are ignored.

    Raises:
        SettingsError: the file cannot be read, or has no token, an invalid one, or too many.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise SettingsError(f"{_FLAG} {path}: cannot be read: {error.strerror}") from None
    digests = []
    for number, line in enumerate(content.splitlines(), 1):
        token = line.strip()
        if not token or token.startswith(b"#"):
            continue
        if len(token) < MIN_TOKEN_CHARACTERS or not _TOKEN.fullmatch(token):
            raise SettingsError(
                f"{_FLAG} {path}: line {number}: expected a token of at least {MIN_TOKEN_CHARACTERS} visible ASCII "
                "characters, without spaces; for example from 'openssl rand -hex 32'"
            )
        digests.append(hashlib.sha256(token).digest())
    if not digests:
        raise SettingsError(f"{_FLAG} {path}: got no token, expected one per line")
    if len(digests) > MAX_TOKENS:
        raise SettingsError(f"{_FLAG} {path}: got {len(digests)} tokens, expected at most {MAX_TOKENS}")
    return frozenset(digests)
