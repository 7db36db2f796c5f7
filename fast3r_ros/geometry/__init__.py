"""Closed-form multi-view geometry; no network, no ROS."""
