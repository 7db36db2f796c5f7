"""Video recorded as one packet per message: H.264, H.265, VP8 and VP9, decoded by OpenCV's FFmpeg.

The packets are put into a Matroska file with their numbers as times.  Every decoded picture then identifies
its message, even if packets were lost in transport or are shown in another order.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources.video import open_capture
from fast3r_ros.mapping.data import UInt8

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
