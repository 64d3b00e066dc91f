"""How much of a connection's bytes are brought in at once."""

from __future__ import annotations

import pytest
from fakes.http_rig import request_bytes, serving
from llmtaskpool_worker.http_api.connections import GuardedProtocol
from llmtaskpool_worker.http_api.flow import READ_BYTES


def test_a_body_that_has_come_is_read_a_bounded_piece_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loops bring up to 256 KB of each connection in a turn, and keep to no bound of ours."""
    sizes: list[int] = []
    received = GuardedProtocol.data_received

    def counted(self: GuardedProtocol, data: bytes) -> None:
        sizes.append(len(data))
        received(self, data)

    monkeypatch.setattr(GuardedProtocol, "data_received", counted)
    with serving() as rig:
        status, _, _ = rig.raw(request_bytes("/v1/tasks", {"kind": "k", "body": "x" * 4_000_000}))
    assert status < 500
    assert sum(sizes) > 4_000_000
    assert max(sizes) <= READ_BYTES
