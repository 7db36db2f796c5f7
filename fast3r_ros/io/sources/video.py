"""Video as a source, through OpenCV: a file, or messages of one packet each."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources.source import SkippedFrame
from fast3r_ros.mapping.data import Float64, Frame, UInt8

# silences FFmpeg's own messages about a bad file; ours is one line
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


AUDIO_SUFFIXES = (".mp3", ".m4a", ".flac", ".ogg", ".oga", ".opus", ".wav", ".wma", ".aac")
WHOLE = 0.95  # minimum share of the container's claimed duration; less means truncated or damaged
CONSTANT = 0.8  # minimum share of one-period intervals in a video of constant rate
EVEN = 0.2  # tolerance of an interval, in periods
DEFAULT_RATE_HZ = 30.0


class VideoFile:
    """The frames of a video, turned upright by its rotation tag, stamped with their presentation times.

    If a video has several streams, the one with the most pixels is used when the ffmpeg program is installed,
    otherwise the first.  Frames are counted by decoding, because containers only estimate their number or may
    be truncated.  They are decoded one by one, so memory does not grow with the length.  See `Source`.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        self.paths: tuple[Path, ...] = (path,)
        self.stamps_ns: Sequence[int] | None
        self.skipped: list[SkippedFrame] = []
        self.truth: Mapping[int, Float64] | None = None
        self.synthetic = False
        if path.suffix.lower() in AUDIO_SUFFIXES:
            raise UserError(f"{path} is an audio file; its cover picture is not a video")
        with path.open("rb"):  # distinguishes a missing permission from an invalid video
            pass
        self._file, stream = path, _largest_stream(path)
        if stream is not None:
            self._folder = tempfile.TemporaryDirectory(prefix="fast3r_video_")  # removed with this source
            self._file = _copied_stream(path, stream, Path(self._folder.name))
        capture = open_capture(self._file)
        claimed_rate = capture.get(cv2.CAP_PROP_FPS)
        claimed_rate = claimed_rate if 0 < claimed_rate < 1e4 else DEFAULT_RATE_HZ
        claimed_s = max(capture.get(cv2.CAP_PROP_FRAME_COUNT), 0.0) / claimed_rate
        times_ms = []
        with tqdm(desc="counting frames", unit=" frames", delay=2, leave=False, disable=None) as bar:
            while capture.grab():
                times_ms.append(capture.get(cv2.CAP_PROP_POS_MSEC))
                bar.update()
        codec = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("ascii", "replace")
        capture.release()
        if not times_ms:
            raise UserError(_no_frames(path, codec.strip("\0 ")))
        self._stamps, self.rate_hz = _stamps(times_ms, claimed_rate)
        self.stamps_ns = self._stamps
        decoded_s = (self._stamps[-1] - self._stamps[0]) / 1e9 + 1 / self.rate_hz
        if decoded_s < WHOLE * claimed_s and len(times_ms) < WHOLE * claimed_s * claimed_rate:
            text = f"the video ends after {len(times_ms)} frames, at {decoded_s:.1f} of {claimed_s:.1f} s"
            self.skipped.append(SkippedFrame("the rest of the video", f"{text}: cut short or damaged"))
        lost = _lost(self._stamps)
        if lost:
            text = f"about {lost} frames are missing in gaps: damaged, or lost during recording"
            self.skipped.append(SkippedFrame("frames of the video", text))

    def __len__(self) -> int:
        """Number of frames that can be decoded."""
        return len(self._stamps)

    def __iter__(self) -> Iterator[Frame]:
        """Every frame; see `Source`."""
        return self.frames(range(len(self)))

    def frame_name(self, stamp_ns: int) -> str:
        """`frame N`, counted from 0."""
        return f"frame {bisect_left(self._stamps, stamp_ns)}"

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The chosen frames; see `Source`.  The others are skipped without conversion."""
        capture = open_capture(self._file)
        stretch = _pixel_aspect(capture)
        position = -1
        try:
            for index in indices:
                grabbed = True
                while position < index and grabbed:
                    grabbed = capture.grab()
                    position += 1
                if not grabbed:
                    break
                decoded, image = capture.retrieve()
                if not decoded:
                    self.skipped.append(SkippedFrame(f"frame {index}", "cannot be decoded"))
                    continue
                yield Frame(self._stamps[index], "camera", _square_pixels(image, stretch))  # type: ignore[arg-type]
        finally:
            capture.release()


def open_capture(path: Path) -> cv2.VideoCapture:
    """A video, opened for decoding.  Raises UserError when it cannot be read."""
    previous = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    finally:
        cv2.utils.logging.setLogLevel(previous)
    if not capture.isOpened():
        raise UserError(f"{path} is not a video that can be read")
    return capture


def _largest_stream(path: Path) -> int | None:
    """The stream with the most pixels, if it is not the first, the only one that OpenCV reads.

    None also without an ffmpeg program.
    """
    if not (shutil.which("ffprobe") and shutil.which("ffmpeg")):
        return None
    what = "stream=index,width,height:stream_disposition=attached_pic"
    command = ["ffprobe", "-v", "quiet", "-select_streams", "v", "-show_entries", what, "-of", "json"]
    found = subprocess.run(
        [*command, f"file:{path.absolute()}"], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    try:
        sizes = {
            int(stream["index"]): int(stream["width"]) * int(stream["height"])
            for stream in json.loads(found.stdout)["streams"]
            if not stream["disposition"]["attached_pic"]
        }
    except (ValueError, KeyError, TypeError):  # unreadable; OpenCV reports it
        return None
    largest = max(sizes, key=lambda index: sizes[index], default=None)
    return None if largest is None or largest == min(sizes) else largest


def _copied_stream(path: Path, stream: int, folder: Path) -> Path:
    """A file in `folder` with one stream, not re-encoded; the video itself if copying fails."""
    copy = folder / "stream.mkv"
    command = ["ffmpeg", "-v", "quiet", "-i", f"file:{path.absolute()}", "-map", f"0:{stream}", "-c", "copy"]
    done = subprocess.run([*command, str(copy)], stdin=subprocess.DEVNULL, check=False)
    return copy if done.returncode == 0 and copy.is_file() else path


def _stamps(times_ms: Sequence[float], claimed_rate: float) -> tuple[list[int], float]:
    """Stamps in ns and frames per second; from the claimed rate if the container has no usable times."""
    stamps = [round(time * 1e6) for time in times_ms]
    if any(later <= earlier for earlier, later in pairwise(stamps)):
        return [round(index * 1e9 / claimed_rate) for index in range(len(stamps))], claimed_rate
    if len(stamps) < 2:
        return stamps, claimed_rate
    return stamps, (len(stamps) - 1) * 1e9 / (stamps[-1] - stamps[0])


def _lost(stamps: Sequence[int]) -> int:
    """Number of frames missing in the gaps of a video of constant rate; 0 for a variable rate."""
    steps = np.diff(np.asarray(stamps, np.int64))
    if len(steps) < 2:
        return 0
    periods = steps / np.median(steps)
    whole = np.abs(periods - np.round(periods)) < EVEN  # a gap of lost frames is a whole number of periods
    constant = np.mean(np.abs(periods - 1.0) < EVEN) >= CONSTANT and whole.all()
    return int(np.round(periods - 1.0).sum()) if constant else 0


def _no_frames(path: Path, codec: str) -> str:
    """Why an opened video has no frame, and what to do."""
    if codec and codec.isprintable():
        convert = f"convert it first: ffmpeg -i {path.name} -c:v libx264 {path.stem}_h264.mp4"
        reason = f"there is no decoder for {codec} here, or it is damaged"
        return f"no frame of {path} can be decoded: {reason}; {convert}"
    return f"the video {path} has no frames"


def _pixel_aspect(capture: cv2.VideoCapture) -> float:
    """Width of a pixel divided by its height, for videos whose pixels are not square."""
    width, height = capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)
    return width / height if width > 0 and height > 0 else 1.0


def _square_pixels(image: UInt8, aspect: float) -> UInt8:
    """BGR as RGB with square pixels; only the shorter side is enlarged, so that no detail is lost."""
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if abs(aspect - 1.0) > 1e-3:
        height, width = rgb.shape[:2]
        size = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR)
    return rgb  # type: ignore[return-value]


PACKETS = {  # type -> definition, for types that rosbags lacks
    "ffmpeg_image_transport_msgs/msg/FFMPEGPacket": """\
std_msgs/Header header
int32 width
int32 height
string encoding
uint64 pts
uint8 flags
bool is_bigendian
uint8[] data
""",
    "foxglove_msgs/msg/CompressedVideo": """\
builtin_interfaces/Time timestamp
string frame_id
uint8[] data
string format
""",
    "h264_msgs/msg/Packet": "std_msgs/Header header\nuint64 seq\nuint8[] data\n",
}
# part of a codec's or encoder's name -> Matroska's name
_CODECS = (
    (r"264|avc", "V_MPEG4/ISO/AVC"),
    (r"265|hevc", "V_MPEGH/ISO/HEVC"),
    (r"vp9", "V_VP9"),
    (r"vp8", "V_VP8"),
    (r"av1", "V_AV1"),
)


def codec_of(content: object) -> str:
    """Matroska's name of a message's codec, empty for an independent picture."""
    name = getattr(content, "encoding", None) or getattr(content, "format", None)
    if name is None:
        return "V_MPEG4/ISO/AVC" if hasattr(content, "seq") else ""
    first = re.split(r"[;/ ]", str(name).strip().lower())[0]
    return next((codec for pattern, codec in _CODECS if re.search(pattern, first)), "")


def decode_packets(codec: str, packets: Iterable[bytes]) -> Iterator[tuple[int, UInt8]]:
    """(number of the packet, its picture as (H, W, 3) uint8 RGB), in display order.

    codec: from `codec_of`.  Packets before the first key frame and damaged ones yield nothing.
    Raises UserError when no packet yields a picture.
    """
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packets.mkv"
        with path.open("wb") as file:
            file.write(_head(codec))
            for number, packet in enumerate(packets):
                time = _element("E7", number.to_bytes(8, "big"))
                file.write(_element("1F43B675", time + _element("A3", b"\x81\0\0\0" + packet)))
        capture = open_capture(path)
        try:
            while capture.grab():
                number = round(capture.get(cv2.CAP_PROP_POS_MSEC))
                decoded, image = capture.retrieve()
                if decoded:
                    found += 1
                    yield number, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[misc]
        finally:
            capture.release()
    if not found:
        name = codec.rpartition("/")[2].removeprefix("V_")
        raise UserError(f"no packet of {name} can be decoded: no key frame, or no decoder for it here")


def _element(identity: str, content: bytes) -> bytes:
    """A Matroska element (RFC 8794): its identity, its length in eight bytes, its content."""
    return bytes.fromhex(identity) + (len(content) | 1 << 56).to_bytes(8, "big") + content


def _head(codec: str) -> bytes:
    """The head of a Matroska file (RFC 9559) with one video track; its times are milliseconds."""

    def number(identity: str, value: int) -> bytes:
        return _element(identity, value.to_bytes(8, "big"))

    ebml = _element("1A45DFA3", _element("4282", b"matroska") + number("4287", 4) + number("4285", 2))
    size = number("B0", 16) + number("BA", 16)  # the packets contain the true size
    track = number("D7", 1) + number("73C5", 1) + number("83", 1) + _element("86", codec.encode())
    segment = bytes.fromhex("18538067") + b"\x01" + b"\xff" * 7  # of unknown length
    info = _element("1549A966", number("2AD7B1", 1_000_000))
    return ebml + segment + info + _element("1654AE6B", _element("AE", track + _element("E0", size)))
