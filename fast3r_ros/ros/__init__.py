"""The ROS 2 interface: nodes, parameters, message conversions.  The only folder that imports rclpy."""

import os

# PyTorch's CPU threads spin while waiting for each other, which makes a pass many times slower on cores
# shared with other nodes.  Their library reads this variable when it is loaded; a value set by the user has
# priority.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
