"""How the settings become limits: each setting has one place, and contradictions are rejected."""

import dataclasses
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from digitserve.errors import SettingsError
from digitserve.settings import Settings, flag
from digitserve.telemetry.block import CloseReason, RefusalReason
from digitserve.transport.native.limits import Limits, WorkerLimits

MIB = 1 << 20

CHANGES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "max_request_bytes": (100_000, {"max_message_bytes": 100_000}, {"max_receive_bytes": 16 * MIB}),
    "max_concurrent_streams": (7, {"max_streams": 7}, {}),
    "max_header_bytes": (10_000, {"max_header_list_bytes": 10_000, "max_header_block_bytes": 40_000}, {}),
    "max_connection_unsent_bytes": (100_000, {"max_unsent_bytes": 100_000}, {}),
    "handshake_timeout_s": (3.0, {"handshake_s": 3.0}, {}),
    "message_timeout_s": (30.0, {"message_s": 30.0}, {"stall_s": 30.0}),
    "max_connection_idle_s": (8.0, {"max_idle_s": 8.0}, {}),
    "max_resets_per_s": (10, {"resets_per_s": 10, "max_resets": 50}, {}),
    "max_control_frames_per_s": (50_000, {"control_frames_per_s": 50_000, "max_control_frames": 5_000}, {}),
    "tls_certificate": (Path("server.pem"), {}, {"max_connections": 2048}),
    "max_connections": (9, {}, {"max_connections": 9}),
    "max_held_bytes": (MIB, {}, {"max_held_bytes": MIB}),
    "max_receive_bytes": (64 * MIB, {}, {"max_receive_bytes": 64 * MIB}),
    "max_connection_age_s": (0, {}, {"max_age_s": math.inf}),
    "max_connection_age_grace_s": (5.0, {}, {"age_grace_s": 5.0}),
}
"""For each setting: a value, and the limits of a connection and of the worker that it changes."""


@pytest.mark.parametrize("name", CHANGES)
def test_each_setting_changes_its_limits_and_no_others(name: str) -> None:
    """Compared with the defaults, only the limits that the setting names are different."""
    value, connection, worker = CHANGES[name]
    settings = Settings(**{name: value})
    assert Limits.of(settings) == dataclasses.replace(Limits.of(Settings()), **connection)
    assert WorkerLimits.of(settings) == dataclasses.replace(WorkerLimits.of(Settings()), **worker)


def test_the_defaults_are_those_of_the_documentation() -> None:
    """The settings and the classes have the same defaults; no limit of time is infinite but those documented so."""
    settings = Settings()
    assert Limits.of(settings) == Limits(max_message_bytes=settings.max_request_bytes)
    assert WorkerLimits.of(settings) == WorkerLimits(
        max_receive_bytes=5 * settings.max_request_bytes, max_age_s=settings.max_connection_age_s
    )


def test_a_message_of_the_largest_size_can_always_be_received() -> None:
    """Less room than two messages of the maximal size is rejected; the error names both settings."""
    with pytest.raises(
        SettingsError, match="--max-receive-bytes: got 1048576, expected at least 33685504.*max-request"
    ):
        WorkerLimits.of(Settings(max_receive_bytes=MIB))
    smallest = Settings(max_receive_bytes=2 * Settings.max_request_bytes)
    limits = WorkerLimits.of(smallest)
    assert limits.max_receive_bytes * 3 // 4 > smallest.max_request_bytes + 5


DOCS = Path(__file__).parents[5] / "docs" / "reference"


def test_the_documentation_lists_every_limit_and_every_reason() -> None:
    """The page of limits names each setting of connections and each reason of the metrics; that of metrics has the reasons."""
    limits, metrics = (DOCS / "limits.md").read_text(), (DOCS / "metrics.md").read_text()
    flags = [flag(setting) for setting in fields(Settings) if setting.metadata["group"] == "Connections"]
    assert len(flags) > 10
    assert [each for each in flags if f"`{each}`" not in limits] == []
    assert [each for each in (*CloseReason, *RefusalReason) if f"`{each}`" not in metrics] == []
    shown = {CloseReason.CLIENT, CloseReason.AGE, CloseReason.IDLE, CloseReason.TOO_MANY, CloseReason.MEMORY,
             CloseReason.TIMEOUT, CloseReason.FLOOD}  # fmt: skip
    limiting = set(RefusalReason) - {RefusalReason.MALFORMED, RefusalReason.NOT_GRPC, RefusalReason.BAD_TIMEOUT}
    assert [each for each in shown | limiting if f"`{each}`" not in limits] == []
