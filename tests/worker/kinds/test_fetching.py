"""io.fetch, over real connections to a site on this machine."""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.server
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
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
        "http://:p@good/x",
        "http://@good/x",
    ],
)
@pytest.mark.parametrize("hosts", [(), ("good",)])
def test_only_listed_hosts_are_fetched(url: str, hosts: tuple[str, ...]) -> None:
    kinds = Kinds()
    register_io_kinds(kinds, data_dir=None, fetch_hosts=hosts)
    with pytest.raises(ArgumentsError) as refused:
        fetched(url, kinds=kinds)
    assert refused.value.field == "arguments.url"


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


@pytest.mark.parametrize(
    "target", ["/a/b%2Fc?sign=ab%2Fcd%3D%3D&at=T00%3A00", "/%41?q=a%3Ab%40c", "/?", "/a%2e%2e/b"]
)
def test_escapes_of_a_url_are_sent_as_they_were_given(target: str) -> None:
    with site(reached) as served:
        fetched(f"{served.url}{target}")
    assert served.seen[0].path == target


def test_a_name_that_nobody_knows_is_told() -> None:
    async def resolve(_: str) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(HandlerError) as refused:
        fetched("http://good/x", "good", resolve=resolve)
    assert (refused.value.code, refused.value.message) == (
        "not_fetched",
        "the host's name can't be resolved",
    )


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """One of a name or address, which vouches for itself; and the file of it."""
    made, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-keyout", str(key), "-out", str(made), "-days", "2", "-subj", "/CN=test"]
        + ["-addext", f"subjectAltName={name}"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return context, made


@pytest.mark.parametrize("name", [f"IP:{HERE}", "IP:127.0.0.2", "DNS:localhost"])
def test_a_certificate_must_be_of_the_host_and_of_somebody_trusted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, file = certificate(tmp_path, name)
    with site(reached, context) as served:
        url = f"https://{HERE}:{served.server_port}/"
        with pytest.raises(HandlerError, match="fetching failed"):
            fetched(url)
        # As LLMTASKPOOL_TRUSTED_CA_FILE has it, for all that this worker calls.
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        if name == f"IP:{HERE}":
            assert fetched(url)["content"] == "reached"
        else:
            with pytest.raises(HandlerError, match="fetching failed"):
                fetched(url)
            assert not served.seen


@pytest.mark.parametrize("secret", [False, True])
def test_an_endless_answer_is_cut_off_and_its_site_can_send_no_more(
    secret: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off = threading.Event()

    def answer(request: Request) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(bytes(1 << 20))
        finally:
            cut_off.set()

    context, file = certificate(tmp_path, f"IP:{HERE}")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))

    async def story(kinds: Kinds, url: str) -> None:
        handler = kinds.by_name["io.fetch"].handler
        with pytest.raises(HandlerError) as refused:
            await handler({"url": url}, CallContext("t", 0.0))  # type: ignore[misc]  # async
        assert (refused.value.code, refused.value.message) == (
            "too_large",
            f"more than {OBJECT_BYTES} bytes came",
        )
        # The worker goes on: its loop closes the connection and doesn't read what still comes.
        assert await asyncio.to_thread(cut_off.wait, 10)

    with site(answer, context if secret else None) as served:
        kinds = Kinds()
        register_io_kinds(kinds, data_dir=None, fetch_hosts=[HERE])
        url = f"http{'s' if secret else ''}://{HERE}:{served.server_port}/"
        asyncio.run(story(kinds, url))


@pytest.mark.parametrize(
    ("path", "sent"), [("/\ud800", {}), ("/", {"method": "POST", "body": "\ud800"})]
)
def test_letters_that_can_not_be_sent_are_told(path: str, sent: dict[str, str]) -> None:
    with site(reached) as served, pytest.raises(HandlerError) as refused:
        fetched(f"{served.url}{path}", **sent)
    assert refused.value.code == "not_fetched"
    assert not served.seen


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
    "raw",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n\r\ncut",
    ],
)
def test_what_is_no_whole_answer_is_told_and_names_no_address(raw: bytes) -> None:
    def answer(request: Request) -> None:
        request.wfile.write(raw)
        request.close_connection = True
        if raw.endswith(b"cut"):  # by a reset, which is no end of a body
            linger = struct.pack("ii", 1, 0)
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.connection.close()

    with site(answer) as served, pytest.raises(HandlerError) as refused:
        fetched(served.url)
    assert refused.value.code == "not_fetched"
    assert refused.value.message.startswith("fetching failed: ")
    assert HERE not in refused.value.message
