"""Metrics, dataset runners and golden cases."""
