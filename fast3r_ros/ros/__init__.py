"""The ROS 2 interface: nodes, parameters, message conversions.  The only folder that imports rclpy."""

import os

# PyTorch's CPU threads spin while they wait for each other, and on cores that other nodes want, too, a pass
# then takes many times as long.  Their library reads this when it is loaded; whoever has set it is right.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
