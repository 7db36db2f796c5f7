"""Synthetic rooms with exact images, depth and poses, for tests, the demo and training."""
