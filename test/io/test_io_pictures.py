"""Photos, lists of photos and videos of other cameras and tools."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fast3r_ros.cli import main
from fast3r_ros.errors import UserError
from fast3r_ros.io.sources import choose_indices, open_source
from fast3r_ros.io.sources.images import ImageFiles
from fast3r_ros.io.sources.video import VideoFile, _lost
from fast3r_ros.pictures import read_picture


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), (10 * index + 5) % 256, np.uint8)


def shades(frames) -> list[int]:
    return [int(frame.image[0, 0, 0]) // 10 for frame in frames]


@pytest.mark.parametrize("suffix", [".gif", ".tga", ".pnm", ".jfif", ".jp2"])
def test_pictures_that_pillow_reads_are_read(tmp_path, suffix):
    for index in range(3):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}{suffix}")
    assert len(list(open_source(tmp_path))) == 3


def test_unreadable_files_of_a_folder_are_named(tmp_path, capsys):
    Image.fromarray(picture(1)).save(tmp_path / "1.png")
    (tmp_path / "2.NEF").write_bytes(b"raw")
    source = open_source(tmp_path)
    assert len(list(source)) == 1
    assert "NEF" in source.skipped[0].reason
    assert main(["info", str(tmp_path)]) == 0
    assert "NEF" in capsys.readouterr().out
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="none of the 1 pictures"):
        open_source(tmp_path)


def test_folders_of_folders_get_a_hint(tmp_path):
    (tmp_path / "cam0").mkdir()
    Image.fromarray(picture(1)).save(tmp_path / "cam0" / "1.png")
    with pytest.raises(UserError, match=r"1 in .*cam0"):
        open_source(tmp_path)


def test_a_broken_first_image_is_no_end(tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(b"broken")
    Image.fromarray(picture(1)).save(tmp_path / "1.png")
    assert main(["info", str(tmp_path)]) == 0
    assert "64 x 48" in capsys.readouterr().out


def test_names_that_are_times_sort_by_time(tmp_path):
    for name in ("1.5", "1.25", "10.0"):
        Image.fromarray(picture(1)).save(tmp_path / f"{name}.png")
    source = ImageFiles.from_folder(tmp_path)
    assert [Path(source.frame_name(frame.stamp_ns)).stem for frame in source] == ["1.25", "1.5", "10.0"]


def test_only_the_first_page_is_used_with_a_warning(tmp_path):
    pages = [Image.fromarray(picture(index)) for index in (4, 5, 6)]
    pages[0].save(tmp_path / "1.tif", save_all=True, append_images=pages[1:])
    source = open_source(tmp_path)
    assert shades(source) == [4]
    assert "first of its 3 pages" in source.skipped[0].reason


@pytest.mark.parametrize("highest", [1023, 4095, 30_000, 65_535])
def test_deep_greys_use_the_whole_range(tmp_path, highest):
    """Cameras of 10, 12 and 16 bits, and a thermal one whose values are all high."""
    low = 25_000 if highest == 30_000 else 0
    ramp = np.linspace(low, highest, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "1.png")
    values = read_picture(tmp_path / "1.png")
    assert values.min() <= 2
    assert values.max() >= 253


LISTS = {
    "byte order mark": ("list.txt", "\ufeffa.png\nb.png\n", None),
    "quotes": ("list.txt", "\"a.png\"\n'b.png'\n", None),
    "whole seconds": ("list.txt", "5 a.png\n7 b.png\n", [5 * 10**9, 7 * 10**9]),
    "nanoseconds": (
        "data.csv",
        "#timestamp [ns],filename\n1403636579763555584,a.png\n1403636579813555456,b.png\n",
        [1403636579763555584, 1403636579813555456],
    ),
    "names of columns": ("data.csv", "time,file\n1.5,a.png\n2.5,b.png\n", [1_500_000_000, 2_500_000_000]),
    "associations": (
        "list.txt",
        "1.5 a.png 1.52 depth/a.png\n2.5 b.png 2.49 depth/b.png\n",
        [1_500_000_000, 2_500_000_000],
    ),
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("inner", ["", "data"])
def test_lists_of_other_tools(tmp_path, kind, inner):
    name, text, stamps = LISTS[kind]
    (tmp_path / inner).mkdir(exist_ok=True)
    for index, file in enumerate(("a.png", "b.png")):
        Image.fromarray(picture(index + 1)).save(tmp_path / inner / file)
    (tmp_path / name).write_text(text, encoding="utf-8")
    frames = list(open_source(tmp_path / name))
    assert shades(frames) == [1, 2]
    if stamps is not None:
        assert [frame.stamp_ns for frame in frames] == stamps


def test_a_pattern_in_a_folder_with_brackets(tmp_path):
    (tmp_path / "walk [1]").mkdir()
    Image.fromarray(picture(1)).save(tmp_path / "walk [1]" / "1.png")
    assert len(list(open_source(str(tmp_path / "walk [1]" / "*.png")))) == 1


def test_lists_of_windows(tmp_path):
    (tmp_path / "walk 1").mkdir()
    for index in (1, 2):
        Image.fromarray(picture(index)).save(tmp_path / "walk 1" / f"{index}.png")
    (tmp_path / "list.txt").write_text("walk 1\\1.png\r\nwalk 1\\2.png\r\n", encoding="utf-16")
    assert shades(open_source(tmp_path / "list.txt")) == [1, 2]


def test_a_folder_with_another_programs_metadata_is_no_bag(tmp_path):
    (tmp_path / "metadata.yaml").write_text("author: somebody\n")
    Image.fromarray(picture(3)).save(tmp_path / "1.png")
    assert shades(open_source(tmp_path)) == [3]


def write_video(path: Path, frames: int, codec: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10.0, (64, 48))
    for index in range(frames):
        writer.write(picture(index))
    writer.release()
    return path


def test_frames_are_counted_by_decoding(tmp_path):
    path = write_video(tmp_path / "v.avi", 12)
    assert len(VideoFile(path)) == 12
    data = bytearray(path.read_bytes())
    place = data.index(b"avih") + 8 + 16  # the number of frames in the header of an AVI
    data[place : place + 4] = (5).to_bytes(4, "little")
    path.write_bytes(data)
    source = VideoFile(path)
    assert len(list(source)) == len(source) == 12


def test_a_truncated_video_gives_its_remaining_frames_and_a_warning(tmp_path):
    path = write_video(tmp_path / "v.avi", 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    source = VideoFile(path)
    assert 5 < len(list(source)) < 40
    assert "cut short" in source.skipped[0].reason


def test_frames_that_are_lost_within_a_video_are_counted():
    second = 10**9
    even = [index * second // 30 for index in range(60)]
    assert _lost(even) == 0
    assert _lost(even[:20] + even[27:]) == 7
    assert _lost([index * second for index in (0, 1, 3, 4, 9, 10, 12)]) == 0  # of variable rate
    assert _lost(even[:1]) == 0


def test_a_rate_thins_by_time_stamps():
    stamps = [0, 10**8, 2 * 10**8, 10**9, 11 * 10**8, 3 * 10**9]
    assert choose_indices(6, 2.0, rate_hz=1.0, stamps_ns=stamps) == [0, 3, 5]
    assert choose_indices(6, 2.0, rate_hz=100.0, stamps_ns=stamps) == list(range(6))


def test_audio_with_a_cover_is_no_video(tmp_path):
    (tmp_path / "song.mp3").write_bytes(b"ID3")
    with pytest.raises(UserError, match="audio"):
        open_source(tmp_path / "song.mp3")
