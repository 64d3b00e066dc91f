"""A stub of external.metrics.k8s.io, behind the API server's aggregator: one number, as set."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

GROUP, VERSION = "external.metrics.k8s.io", "v1beta1"


class MetricsApi:
    """``value`` is what each external metric is; ``asked`` the paths that were asked for."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.value = 0.0
        self.asked: list[str] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub.asked.append(self.path)
                body = json.dumps(stub.answer(self.path.split("?")[0])).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    def answer(self, path: str) -> dict[str, Any]:
        version = f"{GROUP}/{VERSION}"
        if "/namespaces/" not in path:
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": version,
                "resources": [],
            }
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        value = {
            "metricName": path.rsplit("/", 1)[1],
            "metricLabels": {},
            "timestamp": at,
            "value": f"{round(self.value * 1000)}m",
        }
        return {
            "kind": "ExternalMetricValueList",
            "apiVersion": version,
            "metadata": {},
            "items": [value],
        }

    def registered(self, namespace: str) -> list[tuple[str, dict[str, Any]]]:
        """What makes the API server send requests of that group here: paths and objects."""
        service = {
            "metadata": {"name": "metrics-stub"},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }
        behind = {
            "group": GROUP,
            "version": VERSION,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"name": "metrics-stub", "namespace": namespace, "port": self.port},
        }
        api = {"metadata": {"name": f"{VERSION}.{GROUP}"}, "spec": behind}
        return [
            (f"/api/v1/namespaces/{namespace}/services", service),
            ("/apis/apiregistration.k8s.io/v1/apiservices", api),
        ]


@contextmanager
def metrics_api(certificate: Path, key: Path) -> Iterator[MetricsApi]:
    stub = MetricsApi(certificate, key)
    thread = threading.Thread(target=stub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.server.shutdown()
        stub.server.server_close()
        thread.join(10)
