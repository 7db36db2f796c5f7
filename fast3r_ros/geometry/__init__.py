"""Closed-form pieces of multi-view geometry; no network, no ROS."""
