"""Live multi-view 3D mapping for ROS 2 with Fast3R.

    from fast3r_ros import reconstruct

    scene = reconstruct("photos/*.jpg")  # scene.points, scene.poses, scene.views[0].confidence, …

Importing this package is cheap: torch is imported at the first use of a name below, rclpy never.  To read the
code, start at `fast3r_ros.mapping.mapper.Mapper`, which runs every step from a camera frame to the map.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fast3r_ros.errors import UserError
    from fast3r_ros.model import Fast3R
    from fast3r_ros.reconstruction import Scene, View, reconstruct

__all__ = ["Fast3R", "Scene", "UserError", "View", "__version__", "reconstruct"]

__version__ = "0.1.0"

# The generated messages (fast3r_ros.msg, fast3r_ros.srv) are built by colcon into an install space of
# their own; extending the path lets code in the source tree find them.
__path__ = pkgutil.extend_path(__path__, __name__)

_HOMES = {
    "Fast3R": "fast3r_ros.model",
    "Scene": "fast3r_ros.reconstruction",
    "UserError": "fast3r_ros.errors",
    "View": "fast3r_ros.reconstruction",
    "reconstruct": "fast3r_ros.reconstruction",
}


def __getattr__(name: str) -> Any:
    """The public names, imported on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
