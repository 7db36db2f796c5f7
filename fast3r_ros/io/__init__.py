"""Sources of frames and writers of results: videos, folders, bags; clouds, trajectories, pictures."""
