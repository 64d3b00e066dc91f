"""Run as `python hack/images`: see docs/images.md."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "cluster"))  # `import rig`: its nodes are loaded

from pack.cli import main

if __name__ == "__main__":
    main()
