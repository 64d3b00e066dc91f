"""Writes what is made from the chart and for it: run as `python hack/chart.py` (`make chart`).

`crds/llmtaskpool.yaml` is copied into the chart, the table in the chart's README.md is made of its
values (chart_values.py), and `deploy/install.yaml` is the chart rendered with its defaults, for
people without Helm. With `--check` nothing is written, and the exit code is 1 when a file is not
current.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import chart_values

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "llmtaskpool"
CRD = ROOT / "crds" / "llmtaskpool.yaml"
CRD_IN_CHART = CHART / "files" / "crds" / "llmtaskpool.yaml"
README = CHART / "README.md"
INSTALL = ROOT / "deploy" / "install.yaml"
NAMESPACE = "llmtaskpool-system"
HEAD = f"""\
# Generated from helm/llmtaskpool by `make chart`; don't edit. See docs/install.md.
#   kubectl apply --server-side -f deploy/install.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    app.kubernetes.io/part-of: llmtaskpool
    pod-security.kubernetes.io/enforce: restricted
"""


def readme() -> str:
    """The chart's README with its table of values as they are."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = (CHART / "values.yaml").read_text()
    return chart_values.with_table(README.read_text(), values, schema)


def helm() -> str:
    """The test rig's helm, built when it is not there (2 minutes, once)."""
    build = [sys.executable, str(ROOT / "hack" / "cluster"), "build", "--only", "helm"]
    done = subprocess.run([*build, "--output", "json"], stdout=subprocess.PIPE, check=True)  # noqa: S603 (our own program)
    return str(json.loads(done.stdout)["helm"])


def rendered(program: str) -> str:
    """The chart with its defaults as one file; the labels don't claim that Helm manages it."""
    command = [program, "template", "llmtaskpool", str(CHART), "--namespace", NAMESPACE]
    command += ["--skip-tests", "--set", "crds.keep=false", "--kube-version", "1.37.0"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603 (helm)
    kept = [
        line.rstrip()
        for line in done.stdout.splitlines()
        if "app.kubernetes.io/managed-by: Helm" not in line and not line.startswith("# Source:")
    ]
    return HEAD + "\n".join(kept) + "\n"


def main() -> int:
    """Write, or with --check compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, tell what is old")
    check = parser.parse_args().check
    made = {CRD_IN_CHART: CRD.read_text(), README: readme()}
    if not check:
        CRD_IN_CHART.write_text(made[CRD_IN_CHART])  # before the chart is rendered with it
    made[INSTALL] = rendered(helm())
    old = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    for path in old:
        name = path.relative_to(ROOT)
        if check:
            sys.stderr.write(f"{name} is not current: run `make chart` and commit it\n")
        else:
            path.write_text(made[path])
            sys.stderr.write(f"{name} written\n")
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main())
