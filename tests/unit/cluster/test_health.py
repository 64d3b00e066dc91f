"""The operator's pages are reached by IPv6 and by IPv4."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest
from llmtaskpool_operator.cluster.health import HealthPages
from llmtaskpool_operator.cluster.metrics import OperatorMetrics
from llmtaskpool_operator.cluster.settings import OperatorSettings


def answers(host: str, *asked: str) -> list[int]:
    """What /livez answers at each of these addresses while the pages are served on ``host``."""

    async def run() -> list[int]:
        pages = HealthPages(OperatorMetrics(), alive=lambda: True, fault=lambda: "")
        found = []
        async with pages.serving(host, 0) as port, aiohttp.ClientSession() as session:
            for address in asked:
                async with session.get(f"http://{address}:{port}/livez") as answer:
                    found.append(answer.status)
        return found

    return asyncio.run(run())


def test_by_default_they_are_reached_by_ipv6_and_by_ipv4() -> None:
    default = str(OperatorSettings.model_fields["host"].default)
    assert answers(default, "[::1]", "127.0.0.1") == [200, 200]


def test_without_ipv6_they_are_reached_by_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert answers("::", "127.0.0.1") == [200]


def test_one_address_is_that_one() -> None:
    assert answers("127.0.0.1", "127.0.0.1") == [200]
