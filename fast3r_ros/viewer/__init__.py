"""The web viewer; needs the extra `viewer` (viser)."""
