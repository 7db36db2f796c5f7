"""The ROS 2 interface: nodes, parameters, message conversions.  The only folder that imports rclpy."""
