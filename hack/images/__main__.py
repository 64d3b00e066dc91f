"""Run as `python hack/images`: see docs/images.md."""

from pack.cli import main

if __name__ == "__main__":
    main()
