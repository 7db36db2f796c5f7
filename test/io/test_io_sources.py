"""Sources: written frames are read back, and unreadable ones are reported in one clear sentence."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import fast3r_ros.io.sources.video  # noqa: F401 - quiets FFmpeg, which reads its log level once
from fast3r_ros.errors import UserError
from fast3r_ros.io.sources import choose_indices, open_source

CLIPS = Path(__file__).resolve().parents[3] / "shared" / "data"


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture that survives JPEG and video coding, with a colour that tells its seed."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(40, 216, (4, 4, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write_video(path: Path, count: int, rate_hz: float) -> list[np.ndarray]:
    pictures = [picture(seed) for seed in range(count)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate_hz, (64, 48))
    for image in pictures:
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()
    return pictures


def test_video_frames_and_stamps(tmp_path):
    pictures = write_video(tmp_path / "walk.mp4", 7, 10.0)
    source = open_source(tmp_path / "walk.mp4")
    frames = list(source)
    assert len(source) == len(frames) == 7
    assert source.rate_hz == pytest.approx(10.0)
    assert [frame.stamp_ns for frame in frames] == pytest.approx([i * 10**8 for i in range(7)], abs=10**6)
    for frame, image in zip(frames, pictures, strict=True):
        assert frame.image.shape == (48, 64, 3)
        assert np.abs(frame.image.astype(int) - image).mean() < 8


@pytest.mark.parametrize(
    ("quarter_turns", "matrix"), [(1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (3, (0, -1, 1, 0))]
)
def test_rotation_tag_of_a_video_is_honoured(tmp_path, quarter_turns, matrix):
    """A phone held upright writes a rotated image and a matrix in the track header (ISO 14496-12, 8.3.2)."""
    path = tmp_path / "phone.mp4"
    write_video(path, 3, 10.0)
    lying = [frame.image for frame in open_source(path)]
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    for frame, image in zip(open_source(path), lying, strict=True):
        np.testing.assert_array_equal(frame.image, np.rot90(image, -quarter_turns))


def test_the_largest_of_several_video_streams_is_taken(tmp_path):
    """A dash camera writes its preview first; the frames are the large stream's own."""
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        pytest.skip("the ffmpeg program is not installed here")
    write_video(tmp_path / "small.mp4", 4, 10.0)
    pictures = [cv2.resize(each, None, fx=2, fy=2) for each in write_video(tmp_path / "other.mp4", 6, 10.0)]
    size = pictures[0].shape[1::-1]
    writer = cv2.VideoWriter(str(tmp_path / "large.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size)
    for picture in pictures:
        writer.write(picture[..., ::-1])
    writer.release()
    inputs = [word for name in ("small", "large") for word in ("-i", str(tmp_path / f"{name}.mp4"))]
    both = tmp_path / "walk (both).mkv"
    command = ["ffmpeg", "-v", "error", *inputs, "-map", "0:v", "-map", "1:v", "-c", "copy", str(both)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    source = open_source(str(both))
    frames = list(source)
    assert len(source) == len(frames) == 6
    for frame, picture in zip(frames, pictures, strict=True):
        assert frame.image.shape == picture.shape
        assert np.abs(frame.image.astype(int) - picture).mean() < 8
    assert [frame.stamp_ns for frame in frames] == [100_000_000 * i for i in range(6)]
    assert source.frame_name(frames[3].stamp_ns) == "frame 3"


def test_chosen_video_frames_equal_the_same_of_all(tmp_path):
    write_video(tmp_path / "walk.mp4", 9, 30.0)
    source = open_source(tmp_path / "walk.mp4")
    everything = list(source)
    chosen = list(source.frames([0, 3, 8]))
    assert [frame.stamp_ns for frame in chosen] == [everything[i].stamp_ns for i in (0, 3, 8)]
    for frame, index in zip(chosen, (0, 3, 8), strict=True):
        np.testing.assert_array_equal(frame.image, everything[index].image)


@pytest.mark.parametrize(("name", "count"), [("kitchen", 17), ("redkitchen", 29)])
def test_real_clips(name, count):
    path = CLIPS / f"{name}.mp4"
    if not path.exists():
        pytest.skip(f"the clip {path.name} is not here; put the release's demo clips into {CLIPS}")
    frames = list(open_source(path))
    assert len(frames) == count
    assert {frame.image.shape for frame in frames} == {(480, 640, 3)}


def test_folder_is_in_natural_order_and_exact(tmp_path):
    for index in range(12):
        Image.fromarray(picture(index)).save(tmp_path / f"view{index}.png")
    (tmp_path / "notes.md").write_text("not an image")
    source = open_source(tmp_path, rate_hz=5.0)
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [index * 200_000_000 for index in range(12)]
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, picture(index))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    upright = Image.fromarray(picture(3))
    # how a camera stores an upright scene when it is held so: the inverse of what a viewer has to do
    stored = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    (frame,) = open_source(tmp_path)
    np.testing.assert_array_equal(frame.image, np.asarray(upright))


def test_image_modes_become_rgb(tmp_path):
    gray = picture(1)[:, :, 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "a16.png")
    Image.fromarray(gray).save(tmp_path / "b_gray.png")
    Image.fromarray(np.dstack([picture(1), gray])).save(tmp_path / "c_alpha.png")
    sixteen, eight, alpha = open_source(tmp_path)
    np.testing.assert_array_equal(sixteen.image, np.dstack([gray] * 3))
    np.testing.assert_array_equal(eight.image, np.dstack([gray] * 3))
    np.testing.assert_array_equal(alpha.image, picture(1))


def test_glob_and_list_files(tmp_path):
    for index in range(4):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}.png")
    assert len(open_source(f"{tmp_path}/[12].png")) == 2
    (tmp_path / "plain.txt").write_text("# two of them\n3.png\n\n0.png\n")
    first, second = open_source(tmp_path / "plain.txt")
    np.testing.assert_array_equal(first.image, picture(3))
    np.testing.assert_array_equal(second.image, picture(0))
    (tmp_path / "rgb.txt").write_text(
        "# timestamp filename\n1305031102.175304 0.png\n1305031102.275304 1.png\n"
    )
    timed = open_source(tmp_path / "rgb.txt")
    assert [frame.stamp_ns for frame in timed] == [1305031102175304000, 1305031102275304000]
    assert timed.rate_hz == pytest.approx(10.0)


def test_broken_image_among_good_ones_is_skipped_and_named(tmp_path):
    for index in range(3):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}.jpg", quality=95)
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "1b.jpg").write_text("no image at all")
    source = open_source(tmp_path)
    frames = list(source)
    assert len(frames) == 2
    assert [Path(skipped.name).name for skipped in source.skipped] == ["1.jpg", "1b.jpg"]
    assert all(str(tmp_path) in skipped.reason for skipped in source.skipped)
    assert frames[1].stamp_ns == 300_000_000, "a skipped frame must not shift the others' times"


def test_only_broken_images_are_an_error(tmp_path):
    (tmp_path / "a.jpg").write_text("nothing")
    with pytest.raises(UserError, match="none of the 1 images"):
        list(open_source(tmp_path))


def make_bad(folder: Path, kind: str) -> Path:
    path = folder / kind
    if kind == "empty":
        path.mkdir()
    elif kind == "text.mp4":
        path.write_text("this is a text\n" * 50)
    elif kind == "nothing.mp4":
        path.touch()
    elif kind == "cut.mp4":
        write_video(folder / "whole.mp4", 5, 10.0)
        path.write_bytes((folder / "whole.mp4").read_bytes()[:600])
    elif kind == "no_frames.avi":
        cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48)).release()
    elif kind in ("garbage.mcap", "garbage.db3"):
        path.write_bytes(b"\x00garbage" * 100)
    elif kind == "binary.txt":
        path.write_bytes(bytes(range(128, 256)))
    elif kind == "empty.txt":
        path.write_text("# nothing\n")
    return path


BAD = (
    "empty text.mp4 nothing.mp4 cut.mp4 no_frames.avi missing.mp4 "
    "garbage.mcap garbage.db3 binary.txt empty.txt"
)


@pytest.mark.parametrize("kind", BAD.split())
def test_bad_sources_say_one_line_that_names_them(tmp_path, capfd, kind):
    path = make_bad(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        list(open_source(path))
    assert kind in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "libraries must not add lines of their own"


def test_choose_indices_thins_evenly():
    assert choose_indices(10, 10.0) == list(range(10))
    assert choose_indices(10, 10.0, rate_hz=5.0) == [0, 2, 4, 6, 8]
    assert choose_indices(10, 10.0, rate_hz=50.0) == list(range(10))
    assert choose_indices(100, 30.0, max_views=3) == [0, 50, 99] or choose_indices(
        100, 30.0, max_views=3
    ) == [0, 49, 99]
    assert choose_indices(3, 30.0, max_views=8) == [0, 1, 2]
    assert choose_indices(90, 30.0, rate_hz=1.0, max_views=2) == [0, 60]
