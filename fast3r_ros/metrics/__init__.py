"""Accuracy measures of poses, depth maps, point clouds and trajectories: pure functions on arrays."""
