"""Fuzz targets of the supervisor's input: its settings, the file of tokens, and the HTTP port."""

import asyncio
import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
from prometheus_client import CollectorRegistry, Counter

from digitserve.access import Tokens
from digitserve.cli import main
from digitserve.errors import SettingsError
from digitserve.settings import Settings, environment_variable, flag
from digitserve.supervision.http import MAX_HEADER_BYTES, HttpServer, credentials, make_app
from digitserve.supervision.http_access import HttpAccess
from digitserve.web.answers import Failure
from digitserve.web.api import Api
from digitserve.web.decoder_messages import Question
from digitserve.web.decoder_pool import Decoded
from digitserve.web.decoder_process import decode
from support.fuzz_files import MAX_PIXELS
from support.fuzz_source import CHOICES, Source, Target

# Settings.

SERVE = main.commands["serve"]
SETTINGS = fields(Settings)
TEXTS = (
    "0", "1", "-1", "8080", "65536", "1e3", "1e999", "nan", "inf", "-inf", "1_0", " 7 ", "+5", "٣", "0x10", "1.5", "true", "on", "",
    "native", "grpcio", "cpu", "auto", "json", "info", "tcp://10.0.0.1:50051", "/etc/passwd", "models", "9" * 5_000, "\udcff", "a\nb",
)  # fmt: skip


def settings(choices: bytes) -> None:
    """Any flags and variables give settings within their bounds, or an error for the user that names what is wrong."""
    source = Source(choices)
    arguments, environment = [], {}
    for _ in range(1 + source.byte() % 4):
        setting = source.pick(SETTINGS)
        text = (
            source.pick(TEXTS)
            if source.byte() & 3
            else source.take(source.byte() % 20).decode("utf-8", "surrogateescape")
        )
        text = text.replace("\0", "")
        if source.byte() & 1:
            arguments += [flag(setting), text]
        else:
            environment[environment_variable(setting)] = text
    try:
        with patch.dict(os.environ, environment), SERVE.make_context("serve", arguments) as context:
            read = Settings(**{name: value for name, value in context.params.items() if name != "tune"})
    except click.UsageError as error:
        assert error.exit_code == 2
        assert error.format_message()
        return
    for setting in SETTINGS:
        value, bounds = getattr(read, setting.name), setting.metadata["bounds"]
        if value is None or value == setting.default:
            continue
        if isinstance(value, (int, float)):
            assert math.isfinite(value)
            assert (bounds.minimum is None or value >= bounds.minimum) and (
                bounds.maximum is None or value <= bounds.maximum
            )
        assert not bounds.choices or value in bounds.choices
    assert Settings.from_dict(read.to_dict()) == read


# Tokens.


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[Path]:
    fd = os.memfd_create("input")
    try:
        os.write(fd, content)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def tokens(choices: bytes) -> None:
    """A file gives the tokens in its lines, or an error without any of them; only a caller with one of them is admitted."""
    authorization, _, content = choices.partition(b"\0")
    lines = [line.strip() for line in content.splitlines()]
    expected = [line for line in lines if line and not line.startswith(b"#")]
    with _memory_file(content) as path:
        try:
            read = Tokens(path)
        except SettingsError as error:
            assert not expected or any(len(token) < 16 or not re.fullmatch(rb"[!-~]+", token) for token in expected)
            assert str(error).isprintable()
            assert not any(token.decode("latin-1") in str(error) for token in expected if len(token) >= 16)
            return
    assert len(read.value) == len(expected) > 0
    scheme, _, sent = authorization.partition(b" ")
    assert read.admits(authorization) is (scheme.lower() == b"bearer" and sent.lstrip(b" ") in expected)
    for token in expected:
        assert read.admits(b"Bearer " + token)


# The HTTP port.


class Status:
    """A service that is ready."""

    ready = True

    def status_line(self) -> str:
        return "digitserve ready"


REGISTRY = CollectorRegistry()
Counter("images", "Images.", ("number",), registry=REGISTRY).labels("1").inc()
ANSWERS = {b"200", b"307", b"400", b"401", b"404", b"405", b"413", b"415", b"429", b"503"}
"""307: a path with a slash at its end redirects to the one without."""


class FakeTransport(asyncio.Transport):
    """A socket that a client has connected: keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 8080), "peername": ("127.0.0.1", 5)})
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:  # type: ignore[type-arg] # as in asyncio
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        """Flow control is not simulated."""

    resume_reading = pause_reading


@contextlib.contextmanager
def _no_errors() -> Iterator[None]:
    """Fail if uvicorn logs an exception: the application or its protocol has raised it."""
    found: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert not found, found


TOKEN = b"c0ffee" * 6


@cache
def _access() -> tuple[HttpAccess, HttpAccess]:
    """Return access without and with a token."""
    with _memory_file(TOKEN) as path:
        return HttpAccess(Settings()), HttpAccess(Settings(token_file=path))


def http(choices: bytes) -> None:
    """Any bytes get well-formed answers, none of them 5xx, and little of them is kept; metrics need the token.

    Only the HTTP API answers 503: there is no worker.
    """
    with _no_errors():
        asyncio.run(_serve(choices[1:], _access()[choices[:1] >= b"\x80"]))


class InlineDecoder:
    """Decodes in this process."""

    async def decode(self, body: bytes, question: Question) -> Decoded:
        answer, request = decode(body, question, MAX_PIXELS)
        if answer.error:
            raise Failure.invalid(answer.error)
        return Decoded(request, answer.reduction)


async def _serve(choices: bytes, access: HttpAccess) -> None:
    api = Api(Settings(), [], lambda request: access.refusal(*credentials(request)[:1], is_verified=False))
    api._pool = InlineDecoder()  # type: ignore[assignment] # no process per input
    server = HttpServer(make_app(Status(), REGISTRY, access, api.routes), access, Settings.max_http_connections)
    server.config.load()
    make_connection: Any = server.config.http_protocol_class
    connection = make_connection(config=server.config, server_state=server.server_state, app_state={})
    transport = FakeTransport()
    connection.connection_made(transport)
    step = 1 + choices[0] if choices else 1
    sent = choices[1:]
    for start in range(0, len(sent), step):
        if transport.closed:
            break
        connection.data_received(sent[start : start + step])
        await asyncio.sleep(0)
        assert len(connection.conn._receive_buffer) <= MAX_HEADER_BYTES + step
    for _ in range(20):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    await asyncio.sleep(0)
    assert not server.server_state.connections
    for task in list(server.server_state.tasks):
        await task
    written = bytes(transport.written)
    _check_answers(written)
    if access is _access()[1] and TOKEN not in sent:
        assert b"images_total" not in written


def _check_answers(written: bytes) -> None:
    """Each answer has a known status and a Content-Length; bodies follow, but not after HEAD."""
    statuses = re.findall(rb"^HTTP/1\.1 (\d{3}) [A-Za-z ]*\r$", written, re.MULTILINE)
    assert set(statuses) <= ANSWERS, written
    assert written[:9] in {b"", b"HTTP/1.1 "}
    assert b"Traceback" not in written and b"digitserve/" not in written


REQUESTS = (
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + TOKEN + b"\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\nAuthorization: Bearer " + bytes(reversed(TOKEN)) + b"\r\n\r\n",
    b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: text/plain;version=0.0.4;q=x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: application/openmetrics-text; version=1.0.0; escaping=values\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /../../etc/passwd?%00 HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"POST /readyz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello", b"\x16\x03\x01\x02\x00\x01",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", b"GET /v1/model HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v1/classify?width=2&height=2&top_k=3&explain=true HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n1234",
    b"POST /v1/read?width=2&height=2&layout=cells&pattern=%5Cd HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n1234",
    b"POST /v1/classify?timeout_s=0.1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nGIF89a\r\n0\r\n\r\n",
    b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + bytes(100), b"GET /v1/openapi.json?x=1 HTTP/1.0\r\n\r\n",
    b"GET http://a:b@[::1]:x/metrics HTTP/1.1\r\nHost: [\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 2_000,
)  # fmt: skip

TARGETS = {
    "settings": Target(settings, CHOICES, 200),
    "tokens": Target(
        tokens,
        (
            b"Bearer " + TOKEN + b"\0# comment\n\n" + TOKEN + b"\r\n another-token-of-16 ",
            b"bearer  " + TOKEN + b"\0" + TOKEN,
            b"Basic " + TOKEN + b"\0" + TOKEN,
            b"\0",
            b"Bearer x\0short",
            b"Bearer " + TOKEN + b"\0" + TOKEN + b" with spaces",
        ),
        500,
    ),
    "http": Target(
        http,
        (b"\0\0" + REQUESTS[0], *(access + request for request in REQUESTS for access in (b"\0\xff", b"\xff\xff"))),
        3_000,
    ),
}
