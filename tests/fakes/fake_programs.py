"""Programs that write down how they were called and answer as they are told: docker, kind, ip."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCRIPT = """\
#!{python} -IS
import json, os, sys, time

folder = {folder!r}
called = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
note = {{"words": called, "given": len(sys.stdin.buffer.read()) if "/dev/stdin" in called else 0}}


def write(**more):
    with open(os.path.join(folder, "calls"), "a") as calls:
        calls.write(json.dumps(note | more) + "\\n")


write(ended=False)
with open(os.path.join(folder, "answers")) as answers:
    fitting = [a for a in json.load(answers) if called[: len(a["words"])] == a["words"]]
answer = fitting[-1] if fitting else {{"code": 0, "out": "", "err": "", "seconds": 0}}
time.sleep(answer["seconds"])
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
write(ended=True)
sys.exit(answer["code"])
"""


@dataclass(frozen=True, slots=True)
class FakePrograms:
    """A folder for PATH. What nobody told how to answer says nothing and exits with 0."""

    folder: Path

    def add(self, *names: str) -> None:
        self.folder.mkdir(exist_ok=True)
        if not (self.folder / "answers").exists():
            (self.folder / "answers").write_text("[]")
        for name in names:
            path = self.folder / name
            path.write_text(_SCRIPT.format(python=sys.executable, folder=str(self.folder)))
            path.chmod(0o755)

    def answer(
        self, *words: str, code: int = 0, out: str = "", err: str = "", seconds: float = 0
    ) -> None:
        """Answer like this to command lines that begin so; the last that fits wins."""
        path = self.folder / "answers"
        known: list[dict[str, Any]] = json.loads(path.read_text())
        known.append(
            {"words": list(words), "code": code, "out": out, "err": err, "seconds": seconds}
        )
        path.write_text(json.dumps(known))

    def notes(self, *words: str, ended: bool = True) -> list[dict[str, Any]]:
        """What was noted of the calls that begin so, at their end or at their beginning."""
        calls = self.folder / "calls"
        noted = (
            [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        )
        return [
            note
            for note in noted
            if note["ended"] is ended and note["words"][: len(words)] == list(words)
        ]

    def calls(self, *words: str, ended: bool = True) -> list[list[str]]:
        """Command lines that begin so, in order."""
        return [note["words"] for note in self.notes(*words, ended=ended)]
