"""`fast3r reconstruct` in its own process, on real files, and with errors."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import cv2
import numpy as np
import pytest
from evo.tools import file_interface
from patience import HANG_SECONDS
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore

from fast3r_ros.cli import main
from fast3r_ros.cli.reconstruct import default_output
from fast3r_ros.io.results import read_results

# random weights never pass the gates; what is tested here is the command, not the map
NO_GATES = ("--set", "registration.min_view_share=0", "--set", "registration.min_inlier_share=0")
FILES = {"map.ply", "map.pcd", "map.glb", "trajectory.txt", "cameras.json", "preview.png", "report.json"}
FILES |= {"transforms.json"}


def reconstruct(*arguments: object) -> int:
    """The command in this process, which saves the start of another; the status that it would end with."""
    return main(["reconstruct", *map(str, arguments)])


@pytest.mark.parametrize("mode", ["window", "all"])
def test_every_file_is_written(tmp_path, small_model, video, mode):
    output = tmp_path / "out"
    assert reconstruct(video, "--model", small_model, "--output", output, "--mode", mode, *NO_GATES) == 0
    assert {path.name for path in output.iterdir() if path.is_file()} == FILES
    report = json.loads((output / "report.json").read_text())
    assert report["complete"]
    assert (report["frames"], report["model"]) == (30, str(small_model))
    results = read_results(output)
    assert len(results.cloud.points) == report["map_points"] > 0
    assert len(results.cameras) == len(results.read_images()) == report["keyframes"]
    if mode == "all":
        assert report["keyframes"] == 30, "one pass over all views, none left out"
        assert report["windows"] == 1
    trajectory = file_interface.read_tum_trajectory_file(output / "trajectory.txt")
    assert trajectory.num_poses == report["keyframes"]
    for folder in ("images", "depth", "confidence"):
        assert len(list((output / folder).glob("*.png"))) == report["keyframes"]
    assert cv2.imread(str(output / "preview.png")).shape[1] == 1600


@pytest.mark.slow
def test_on_a_terminal_a_bar_shows_the_time_left(tmp_path, child_environment, small_model, video):
    terminal, child_side = pty.openpty()
    fcntl.ioctl(child_side, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))  # rows, columns
    arguments = ["reconstruct", video, "--model", small_model, "--output", tmp_path / "out", *NO_GATES]
    command = [sys.executable, "-m", "fast3r_ros", *map(str, arguments)]
    child = subprocess.Popen(command, env=child_environment, stdout=subprocess.DEVNULL, stderr=child_side)
    os.close(child_side)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal tells that its last user is gone
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert child.wait(HANG_SECONDS) == 0
    assert re.search(r"\d+/30 \[\d\d:\d\d<\d\d:\d\d, .*points=\d+", shown.decode()), shown


def test_rate_and_maximum_of_views(tmp_path, small_model, video):
    common = (video, "--model", small_model, "--mode", "all", *NO_GATES)
    reconstruct(*common, "--output", tmp_path / "a", "--rate", 2)
    reconstruct(*common, "--output", tmp_path / "b", "--rate", 5, "--max-views", 4)
    frames = [json.loads((tmp_path / name / "report.json").read_text())["frames"] for name in "ab"]
    assert frames == [6, 4]


@pytest.mark.slow
def test_options_of_points_and_network_act(tmp_path, small_model, video):
    """The effect of `--size` and `--voxel-size` on the files; `--dtype` and `--device` run."""
    common = ("reconstruct", video, "--model", small_model, *NO_GATES)
    runs = {
        "plain": (),
        "options": ("--size", 64, "--voxel-size", 0.2, "--dtype", "bfloat16", "--device", "cpu"),
    }
    for name, options in runs.items():
        assert main([*map(str, (*common, "--output", tmp_path / name, *options))]) == 0
    plain, other = (read_results(tmp_path / name) for name in runs)
    assert {(camera.width, camera.height) for camera in plain.cameras} == {(112, 80)}
    assert {max(camera.width, camera.height) for camera in other.cameras} == {64}
    voxels = np.floor(other.cloud.points / 0.2 + 1e-4).astype(int)
    assert len(np.unique(voxels, axis=0)) > 0.99 * len(voxels), "one point in a voxel"


def test_no_point_of_enough_confidence_is_an_empty_map_and_status_1(tmp_path, small_model, video, capsys):
    common = (video, "--model", small_model, "--output", tmp_path / "out", *NO_GATES)
    assert reconstruct(*common, "--min-confidence", 1000) == 1
    assert "the map is empty" in capsys.readouterr().out
    assert len(read_results(tmp_path / "out").cloud.points) == 0


def write_chatter(path: Path) -> None:
    """A bag with one text message, written by rosbags."""
    store, kind = get_typestore(Stores.ROS2_JAZZY), "std_msgs/msg/String"
    with Writer(path, version=9) as writer:
        connection = writer.add_connection("/chatter", kind, typestore=store)
        writer.write(connection, 10**9, store.serialize_cdr(store.types[kind](data="hello"), kind))


def wrong_uses(folder: Path, model: Path, video: Path) -> dict[str, tuple[list[object], str]]:
    """Usage error -> the arguments, and words that the one line must have."""
    (folder / "empty").mkdir()
    (folder / "text.mp4").write_text("a text\n" * 100)
    (folder / "a_file").write_text("")
    cv2.VideoWriter(str(folder / "no_frames.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48)).release()
    write_chatter(folder / "bag")
    good = ["--model", model, "--output", folder / "out"]
    return {
        "no source": ([folder / "missing.mp4", *good], "missing.mp4"),
        "empty folder": ([folder / "empty", *good], "no images in"),
        "text as video": ([folder / "text.mp4", *good], "not a video"),
        "video without frames": ([folder / "no_frames.avi", *good], "no_frames.avi"),
        "bag without images": ([folder / "bag", *good], "has no images; its topics: /chatter"),
        "no model": ([video, "--model", folder / "nowhere", "--output", folder / "out"], "nowhere"),
        "unknown parameter": ([video, *good, "--set", "window.sise=8"], "window.sise"),
        "parameter out of range": ([video, *good, "--set", "window.size=100000"], "window.size"),
        "not an assignment": ([video, *good, "--set", "window.size"], "not an assignment"),
        "unknown scale": ([video, *good, "--scale", "inches=3"], "inches"),
        "odometry of a video": ([video, *good, "--scale", "odometry"], "needs a bag"),
        "no such GPU": ([video, *good, "--device", "cuda:9"], "cuda:9"),
        "output is a file": ([video, "--model", model, "--output", folder / "a_file"], "cannot write"),
        "not writable": ([video, *good, "--output", "/proc/fast3r"], "cannot write"),
        "output below a file": (
            [video, "--model", model, "--output", folder / "a_file" / "x"],
            "cannot write",
        ),
    }


WRONG = """no source, empty folder, text as video, video without frames, bag without images, no model,
unknown parameter, parameter out of range, not an assignment, unknown scale, odometry of a video, no such GPU,
output is a file, not writable, output below a file"""


@pytest.mark.parametrize("case", WRONG.replace("\n", " ").split(", "))
def test_a_usage_error_gives_one_clear_line_and_status_2(tmp_path, small_model, video, case, capfd):
    arguments, words = wrong_uses(tmp_path, small_model, video)[case]
    assert reconstruct(*arguments) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fast3r reconstruct: ")
    assert words in lines[0]


@pytest.mark.parametrize(
    "option",
    ["--max-views 0", "--max-views=-3", "--size 0", "--size big", "--rate=-2", "--rate nan", "--dtype int3"],
)
def test_an_invalid_option_gives_one_line_and_status_2(option, capsys):
    with pytest.raises(SystemExit) as ended:
        reconstruct("synthetic:2", "--output", "out", *option.split())
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fast3r reconstruct: argument {re.split('[ =]', option)[0]}: ")


def test_a_process_ends_with_the_status_and_no_traceback(fast3r, tmp_path):
    done = fast3r("reconstruct", tmp_path / "missing.mp4", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_broken_image_is_skipped_counted_and_named(tmp_path, small_model, video, capsys):
    images = tmp_path / "images"
    images.mkdir()
    capture = cv2.VideoCapture(str(video))
    for index in range(8):
        cv2.imwrite(str(images / f"{index}.jpg"), capture.read()[1])
    (images / "3.jpg").write_bytes((images / "3.jpg").read_bytes()[:400])
    output = tmp_path / "out"
    assert reconstruct(images, "--model", small_model, "--output", output, *NO_GATES) == 0
    assert "3.jpg" in capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    assert report["frames"] == 7
    assert [Path(skipped["name"]).name for skipped in report["frames_skipped"]] == ["3.jpg"]


def test_a_scale_that_could_not_be_measured_is_reported(tmp_path, small_model, video, capsys):
    """A video has no depth images."""
    common = (video, "--model", small_model, "--output", tmp_path / "out", *NO_GATES)
    assert reconstruct(*common, "--max-views", 8, "--set", "scale.source=depth") == 0
    assert "no scale, lengths are map units: depth gave too little" in capsys.readouterr().out


@pytest.mark.slow
def test_no_write_permission_gives_a_one_line_error(tmp_path, child_environment, small_model, video):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    command = [sys.executable, "-m", "fast3r_ros", "reconstruct", video, "--model", small_model]
    if os.geteuid() == 0:  # root may write everywhere, unless it gives that up
        without = ["setpriv", "--bounding-set", "-dac_override"]
        if (
            shutil.which("setpriv") is None
            or subprocess.run([*without, "true"], capture_output=True).returncode
        ):
            pytest.skip("root cannot give up its rights here (setpriv): every folder can be written")
        command = [*without, *command]
    done = subprocess.run(
        [*map(str, command), "--output", str(locked / "out")],
        env=child_environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert f"cannot write {locked / 'out'}: Permission denied" in line


@pytest.mark.slow
def test_a_file_that_cannot_grow_gives_a_one_line_error_and_the_rest_is_kept(
    tmp_path, child_environment, small_model, video
):
    """Like a full disk, where large files fail: complete small files, and a report of the failure."""
    output = tmp_path / "out"
    arguments = ["reconstruct", video, "--model", small_model, "--output", output, *NO_GATES]
    limit = 150_000  # bytes: more than a picture, less than the cloud
    code = (
        "import resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "from fast3r_ros.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=child_environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("fast3r reconstruct: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    report = json.loads((output / "report.json").read_text())
    assert not report["complete"]
    assert "cannot write" in report["stopped"]
    assert report["stopped"] in lines[0]
    assert not (output / "map.ply").exists()
    poses = file_interface.read_tum_trajectory_file(output / "trajectory.txt").num_poses
    assert poses == report["keyframes"] == len(list((output / "depth").glob("*.png"))) > 0
    assert not list(output.rglob("*.part*")), "no halves are left behind"


@pytest.mark.slow
@pytest.mark.parametrize(("streams", "status"), [("> /dev/full 2> /dev/full", 2), (">&- 2>&- <&-", 0)])
def test_results_are_written_when_nothing_can_be_printed(
    tmp_path, child_environment, small_model, video, streams, status
):
    """A full disk under the log of both streams, and a parent that has closed them."""
    arguments = (video, "--model", small_model, "--output", tmp_path / "out", "--resume", *NO_GATES)
    command = f"{sys.executable} -m fast3r_ros reconstruct {' '.join(map(str, arguments))} {streams}"
    assert subprocess.run(command, shell=True, env=child_environment).returncode == status
    assert json.loads((tmp_path / "out" / "report.json").read_text())["complete"]
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == FILES


@pytest.mark.slow
def test_a_failed_output_is_reported_by_the_status(child_environment):
    command = f"{sys.executable} -m fast3r_ros"
    full = subprocess.run(
        f"{command} info demo > /dev/full",
        shell=True,
        env=child_environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert full.returncode == 2
    assert full.stderr == "fast3r: cannot write the output: No space left on device\n"
    gone = f"{command} info demo | true; echo ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", gone], env=child_environment, capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("0\n", "")
    wrong = subprocess.run(f"{command} info nothing 2> /dev/full", shell=True, env=child_environment)
    assert wrong.returncode == 2


@pytest.mark.slow
def test_full_disk_gives_a_one_line_error_and_the_result_is_marked_partial(
    tmp_path, child_environment, small_model, video
):
    if shutil.which("unshare") is None:
        pytest.skip("no unshare on this system: a small disk cannot be mounted")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=120k none {disk}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting in a user namespace is not allowed here: a small disk cannot be mounted")
    command = (
        f"{mount} && {sys.executable} -m fast3r_ros reconstruct {video} --model {small_model} "
        f"--output {disk}/out {' '.join(NO_GATES)}; status=$?; cat {disk}/out/report.json; exit $status"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], env=child_environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "disk is full" in done.stderr
    assert json.loads(done.stdout)["complete"] is False


def test_viewer_shows_the_growing_map(tmp_path, small_model, video, capsys):
    pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
    common = (video, "--model", small_model, "--output", tmp_path / "out", *NO_GATES)
    assert reconstruct(*common, "--viewer") == 0
    assert "viewer: http://127.0.0.1:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("walk.mp4", "walk_map"),
        ("/elsewhere/my walk.v2.mp4", "my walk.v2_map"),
        ("photos/*.jpg", "photos_map"),
        ("photos/**/img_?.png", "photos_map"),
        ("*.jpg", "{here}_map"),
        ("synthetic", "synthetic_map"),
        ("synthetic:2", "synthetic_map"),
        ("a.folder", "a.folder_map"),
    ],
)
def test_results_have_a_default_folder(source, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.folder").mkdir()
    assert str(default_output(source)) == folder.format(here=tmp_path.name)


def test_results_do_not_lie_in_the_folder_that_we_are_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_output(".") == tmp_path.parent / f"{tmp_path.name}_map"
    assert default_output(str(tmp_path)) == tmp_path.parent / f"{tmp_path.name}_map"


@pytest.mark.slow
def test_without_output_the_results_are_here(video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["reconstruct", str(video), "--max-views", "4", "--device", "cpu"]
    assert main(arguments) in (0, 1)
    assert (tmp_path / f"{video.stem}_map" / "preview.png").is_file()
    assert main(arguments) in (0, 1)  # its own results are replaced


@pytest.mark.parametrize(
    ("assignment", "advice"),
    [
        ("window.sise=12", "did you mean window.size"),
        ("voxel_size=0.1", "did you mean map.voxel_size"),
        ("min_confidence=2", "did you mean points.min_confidence"),
        ("zebra=2", "known are "),
    ],
)
def test_a_wrong_name_gets_the_right_one(assignment, advice, video, tmp_path, capsys):
    arguments = ["reconstruct", str(video), "--output", str(tmp_path / "map"), "--set", assignment]
    assert main(arguments) == 2
    assert advice in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["reconstruct", "--help"])
    assert "example: fast3r reconstruct walk.mp4 && fast3r view walk_map" in capsys.readouterr().out
