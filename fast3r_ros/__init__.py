"""Live multi-view 3D mapping for ROS 2 with Fast3R.

Importing this package is cheap: neither torch nor rclpy is imported here.  Start reading at
`fast3r_ros.mapping.mapper.Mapper`, which runs the whole way from a camera frame to the map.
"""

import pkgutil

__version__ = "0.1.0"

# The generated messages (fast3r_ros.msg, fast3r_ros.srv) are built by colcon into an install space of
# their own; extending the path lets code in the source tree find them.
__path__ = pkgutil.extend_path(__path__, __name__)
