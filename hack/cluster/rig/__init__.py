"""A real Kubernetes on this machine, for tests: built from pinned sources, gone without a trace."""

from rig.control_plane import ControlPlane, Options, control_plane
from rig.errors import RigError

__all__ = ["ControlPlane", "Options", "RigError", "control_plane"]
