"""The images, built on this machine from package registries alone and given to the rig."""

from pack.errors import PackError

__all__ = ["PackError"]
