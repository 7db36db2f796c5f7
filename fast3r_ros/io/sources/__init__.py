"""Sources of frames: video, image files, rosbag2 and the built-in synthetic walk.

`open_source("walk.mp4")` recognises the kind of source.  Iterating a source yields `Frame`s.
"""

from fast3r_ros.io.sources.opening import is_bag, open_source
from fast3r_ros.io.sources.source import SkippedFrame, Source, choose_indices

__all__ = ["SkippedFrame", "Source", "choose_indices", "is_bag", "open_source"]
