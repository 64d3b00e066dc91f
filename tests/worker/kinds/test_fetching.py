"""io.fetch, over real connections to a site on this machine."""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from llmtaskpool_worker.kinds.content import OBJECT_BYTES, SHORT_BYTES
from llmtaskpool_worker.kinds.fetching import Resolve
from llmtaskpool_worker.kinds.io import register_io_kinds
from llmtaskpool_worker.kinds.registry import ArgumentsError, CallContext, HandlerError, Kinds

HERE = "127.0.0.1"
Request = http.server.BaseHTTPRequestHandler
Answer = Callable[[Request], None]


class Site(http.server.ThreadingHTTPServer):
    """Answers as a test says, and notes what it was asked."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__((HERE, 0), _Asked)
        self.answer, self.seen = answer, list[Request]()
        self.url = f"http://{HERE}:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that has heard enough may go."""


class _Asked(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.seen.append(self)
        self.server.answer(self)

    do_POST = do_GET  # noqa: N815  so http.server wants it

    def log_message(self, *_: object) -> None:
        pass


def told(request: Request, content: bytes = b"", status: int = 200, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("content-length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


@contextmanager
def site(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    served = Site(answer)
    if tls is not None:
        served.socket = tls.wrap_socket(served.socket, server_side=True)
    serving = threading.Thread(target=served.serve_forever, args=(0.01,))
    serving.start()
    try:
        yield served
    finally:
        served.shutdown()
        served.server_close()
        serving.join()


def reached(request: Request) -> None:
    told(request, b"reached")


def fetched(
    url: str,
    *hosts: str,
    resolve: Resolve | None = None,
    kinds: Kinds | None = None,
    **arguments: str,
) -> Any:
    """Check and run, as the dispatcher does."""
    if kinds is None:
        kinds = Kinds()
        hosts = hosts or (HERE,)
        register_io_kinds(kinds, data_dir=None, fetch_hosts=hosts, resolve=resolve)
    kind, given = kinds.by_name["io.fetch"], {"url": url, **arguments}
    assert kind.check is not None
    kind.check(given)
    return asyncio.run(kind.handler(given, CallContext("t", 0.0)))  # type: ignore[arg-type]  # async


def names(*addresses: str) -> Resolve:
    async def resolve(_: str) -> list[str]:
        return list(addresses)

    return resolve


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Site], list[tuple]]]:
    """Whoever connects, wherever to, gets to a site here; the addresses are noted."""
    addresses: list[tuple] = []
    connect = uvloop.Loop.sock_connect

    def all_lead_to(served: Site) -> list[tuple]:
        async def noted(loop, sock, address) -> None:
            addresses.append(address)
            if ":" in address[0]:
                raise ConnectionRefusedError
            await connect(loop, sock, served.server_address)

        monkeypatch.setattr(uvloop.Loop, "sock_connect", noted)
        return addresses

    return all_lead_to


@pytest.mark.parametrize(
    "url",
    [
        "http://other/x",
        "file:///etc/passwd",
        "http://u@good/x",
        "http://good.other/",
        "good",
        "http://",
        "http://good:99999/",
        "http://other\\@good/",
    ],
)
@pytest.mark.parametrize("hosts", [(), ("good",)])
def test_only_listed_hosts_are_fetched(url: str, hosts: tuple[str, ...]) -> None:
    kinds = Kinds()
    register_io_kinds(kinds, data_dir=None, fetch_hosts=hosts)
    with pytest.raises(ArgumentsError) as refused:
        fetched(url, kinds=kinds)
    assert refused.value.field == "arguments.url"


@pytest.mark.parametrize("letters", ["\\", "\t", "\n", "%00", "%2f", "%40", " ", "#", "?", "@"])
@pytest.mark.parametrize(
    "pattern", ["http://good{}other/", "http://good{}@other/", "http://other{}good/"]
)
def test_no_way_to_write_a_url_leads_beyond_the_listed_hosts(
    pattern: str, letters: str, called
) -> None:
    asked: list[str] = []

    async def resolve(host: str) -> list[str]:
        asked.append(host)
        return ["93.184.215.14"]

    with site(reached) as served:
        called(served)
        with suppress(ArgumentsError, HandlerError):
            fetched(pattern.format(letters), "good", resolve=resolve)
    assert set(asked) <= {"good"}


def test_a_fetch_answers_status_and_content_and_follows_no_redirect() -> None:
    def answer(request: Request) -> None:
        if request.path == "/away":
            told(request, status=302, location="http://other/")
            return
        sent = request.rfile.read(int(request.headers.get("content-length", 0)))
        told(request, request.command.encode() + sent)

    with site(answer) as served:
        posted = fetched(served.url, method="POST", body="hi ж")
        assert (posted["status"], posted["content"]) == (200, "POSThi ж")
        assert posted["encoding"] == "text"
        assert fetched(served.url)["content"] == "GET"
        assert fetched(f"{served.url}/away")["status"] == 302
    # Nothing is said of what a text is, nor of what runs here.
    assert "content-type" not in served.seen[0].headers
    assert served.seen[0].headers["user-agent"] == "llmtaskpool"


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1"]
)
def test_a_listed_name_that_leads_to_an_inner_address_is_not_called(address: str, called) -> None:
    with site(reached) as served:
        addresses = called(served)
        with pytest.raises(HandlerError) as refused:
            fetched("http://good/x", "good", resolve=names("93.184.215.14", address))
    assert refused.value.code == "not_allowed"
    assert not addresses
    assert not served.seen


def test_the_address_that_was_checked_is_the_one_called(called) -> None:
    with site(reached) as served:
        addresses = called(served)
        url = "http://good.example:8443/x?y=1"
        told = fetched(url, "good.example", resolve=names("93.184.215.14"))
    assert told["content"] == "reached"
    assert addresses == [("93.184.215.14", 8443)]
    (request,) = served.seen
    assert request.path == "/x?y=1"
    assert request.headers["host"] == "good.example:8443"


def test_another_address_of_a_name_is_called_when_one_does_not_answer(called) -> None:
    with site(reached) as served:
        addresses = called(served)
        resolve = names("2606:2800::1", "93.184.215.14")
        assert fetched("http://good/", "good", resolve=resolve)["content"] == "reached"
    assert [address[:2] for address in addresses] == [("2606:2800::1", 80), ("93.184.215.14", 80)]


def test_an_inner_address_that_is_listed_itself_is_called(called) -> None:
    with site(reached) as served:
        called(served)
        told = fetched("http://10.1.2.3/x", "10.1.2.3", resolve=names())
    assert told["content"] == "reached"


def test_a_name_that_nobody_knows_is_told(called) -> None:
    async def resolve(_: str) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(HandlerError) as refused:
        fetched("http://good/x", "good", resolve=resolve)
    assert (refused.value.code, refused.value.message) == (
        "not_fetched",
        "the host's name can't be resolved",
    )


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """One of a name, which vouches for itself; and the file of it."""
    made, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-keyout", str(key), "-out", str(made), "-days", "2", "-subj", "/CN=test"]
        + ["-addext", f"subjectAltName=DNS:{name}"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return context, made


@pytest.mark.parametrize("host", ["good.example", "other.example"])
def test_a_certificate_must_be_of_the_name_and_of_somebody_trusted(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called
) -> None:
    context, file = certificate(tmp_path, "good.example")
    hosts, resolve = ("good.example", "other.example"), names("93.184.215.14")
    with site(reached, context) as served:
        called(served)
        with pytest.raises(HandlerError, match="fetching failed"):
            fetched(f"https://{host}/", *hosts, resolve=resolve)
        # As LLMTASKPOOL_TRUSTED_CA_FILE has it, for all that this worker calls.
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        if host == "other.example":
            with pytest.raises(HandlerError, match="fetching failed"):
                fetched(f"https://{host}/", *hosts, resolve=resolve)
            assert not served.seen
        else:
            assert fetched(f"https://{host}/", *hosts, resolve=resolve)["content"] == "reached"


def test_an_endless_answer_is_cut_off() -> None:
    def answer(request: Request) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(bytes(1 << 20))

    with site(answer) as served, pytest.raises(HandlerError) as refused:
        fetched(served.url)
    assert (refused.value.code, refused.value.message) == (
        "too_large",
        f"more than {OBJECT_BYTES} bytes came",
    )


@pytest.mark.parametrize("size", [0, 4, SHORT_BYTES, SHORT_BYTES + 4, 3 << 20])
@pytest.mark.parametrize("encoding", ["text", "base64"])
def test_an_answer_of_any_size_comes_as_it_was(size: int, encoding: str) -> None:
    content = "aжb".encode() * (size // 4)
    with site(lambda request: told(request, content)) as served:
        answer = fetched(served.url, encoding=encoding)
    meant = content.decode() if encoding == "text" else base64.b64encode(content).decode()
    assert answer == {"status": 200, "content": meant, "encoding": encoding}


def test_a_compressed_answer_is_not_unfolded() -> None:
    packed = gzip.compress(bytes(1 << 20))
    with site(lambda request: told(request, packed, content_encoding="gzip")) as served:
        answer = fetched(served.url, encoding="base64")
    assert base64.b64decode(answer["content"]) == packed
    assert served.seen[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "raw", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"]
)
def test_what_is_no_whole_answer_is_told_and_names_no_address(raw: bytes) -> None:
    def answer(request: Request) -> None:
        request.wfile.write(raw)
        request.close_connection = True

    with site(answer) as served, pytest.raises(HandlerError) as refused:
        fetched(served.url)
    assert refused.value.code == "not_fetched"
    assert refused.value.message.startswith("fetching failed: ")
    assert HERE not in refused.value.message
