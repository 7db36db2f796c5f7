"""Losses, datasets and the trainer."""
