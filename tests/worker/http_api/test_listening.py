"""Where the ports listen: `::` is all of the machine, by IPv6 and by IPv4."""

from __future__ import annotations

import socket

import pytest
from llmtaskpool_worker.http_api.server import _listen


def reached(port: int, host: str) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False


def test_all_addresses_are_those_of_ipv6_and_of_ipv4() -> None:
    with _listen("::", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        assert reached(port, "::1")
        assert reached(port, "127.0.0.1")


def test_where_there_is_no_ipv6_all_addresses_are_those_of_ipv4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with _listen("::", 0) as listener:
        listener.listen()
        assert listener.family == socket.AF_INET
        assert reached(listener.getsockname()[1], "127.0.0.1")


def test_one_address_is_that_one() -> None:
    with _listen("127.0.0.1", 0) as listener:
        assert listener.family == socket.AF_INET
        assert listener.getsockname()[0] == "127.0.0.1"


def test_two_workers_cant_have_one_port_of_all_addresses() -> None:
    with _listen("::", 0) as listener:
        listener.listen()
        with pytest.raises(OSError, match="use another port"):
            _listen("::", listener.getsockname()[1])
