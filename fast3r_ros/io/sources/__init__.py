"""Sources of frames: video, image files, rosbag2 and the built-in synthetic walk.

`open_source("walk.mp4")` finds out what the text means.  Every source is iterated for `Frame`s.
"""

from __future__ import annotations

from pathlib import Path

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources.images import IMAGE_SUFFIXES, ImageFiles
from fast3r_ros.io.sources.source import SkippedFrame, Source, choose_indices
from fast3r_ros.io.sources.video import VideoFile

__all__ = ["SkippedFrame", "Source", "choose_indices", "is_bag", "open_source"]
KINDS = "a video, a folder or glob of images, a .txt list of images, a rosbag2, or the word synthetic"


def open_source(
    text: str | Path,
    *,
    topic: str | None = None,
    rate_hz: float | None = None,
    camera_info: bool = True,
) -> Source:
    """Open what `text` names: one of `KINDS`.

    topic: the image topic of a rosbag2, needed when it has several.  camera_info: whether to use the
    calibration next to that topic.  rate_hz: frames per second of image files without times (default 10).
    Raises UserError when there is no such source, or when it holds no frame.
    """
    text = str(text)
    path = Path(text).expanduser()
    if text == "synthetic" or text.startswith("synthetic:"):
        # imports PyTorch, which takes seconds
        from fast3r_ros.io.sources.synthetic_walk import SyntheticSource

        return SyntheticSource.demo(text.partition(":")[2])
    if not path.exists():
        if any(character in text for character in "*?["):
            return ImageFiles.from_glob(text, rate_hz)
        raise UserError(f"no such source: {text}; give {KINDS}")
    try:
        return _open_existing(path, topic, rate_hz, camera_info)
    except PermissionError as error:
        raise UserError(f"no permission to read {error.filename or path}") from error


def _open_existing(path: Path, topic: str | None, rate_hz: float | None, camera_info: bool) -> Source:
    if is_bag(path):
        from fast3r_ros.io.sources.rosbag import RosBag  # needs an optional package

        return RosBag(path, topic, camera_info)
    if path.is_dir():
        return ImageFiles.from_folder(path, rate_hz)
    suffix = path.suffix.lower()
    if suffix in (".txt", ".lst", ".csv"):
        return ImageFiles.from_list(path, rate_hz)
    if suffix in IMAGE_SUFFIXES:
        return ImageFiles([path], str(path), rate_hz)
    return VideoFile(path)


def is_bag(path: Path) -> bool:
    """Whether a path looks like a ROS bag: a .mcap, .db3 or .bag file, or a folder that holds one."""
    if path.is_dir():
        return any(any(path.glob(pattern)) for pattern in ("*.mcap*", "*.db3*")) or _has_bag_metadata(path)
    return path.suffix.lower() == ".bag" or bool({*path.suffixes[-2:]} & {".mcap", ".db3"})


def _has_bag_metadata(folder: Path) -> bool:
    """Whether a folder's metadata.yaml is a bag's, and not another program's."""
    try:
        with (folder / "metadata.yaml").open("rb") as file:
            return b"rosbag2" in file.read(4096)
    except FileNotFoundError:
        return False
