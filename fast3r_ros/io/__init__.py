"""Where frames come from and where maps go: videos, folders, bags; clouds, trajectories, pictures."""
