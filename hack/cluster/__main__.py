"""Run as `python hack/cluster`: see docs/rig.md."""

from rig.cli import main

if __name__ == "__main__":
    main()
