"""Run as `python hack/kind`: see docs/rig.md."""

import sys
from pathlib import Path

HACK = Path(__file__).parents[1]
sys.path += [str(HACK / "cluster"), str(HACK / "images")]  # `import rig`, `import pack`

from kindrig.cli import main  # noqa: E402 (they must be found first)

if __name__ == "__main__":
    main()
