"""Every command that the documentation shows is run: in short form here, or by a test that is named here."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from patience import HANG_SECONDS
from PIL import Image
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore
from shown_commands import PAGES, ROOT, blocks, commands, languages, of_fast3r, text_without_a_word_on_tests

from fast3r_ros.cli import main
from fast3r_ros.io.sources import open_source
from fast3r_ros.synthetic.sequence import demo_sequence

pytestmark = pytest.mark.slow

NO_GATES = "--set registration.min_view_share=0 --set registration.min_inlier_share=0"
# Part of the arguments -> what is added so that they take seconds; the last of two equal options counts, and
# the first part that fits.
SHORTER = {
    "reconstruct": NO_GATES,  # whether the model understands the scene is not the documentation's concern
    "convert": "",
    "info": "",
    "golden": "",
    "7scenes": "--data-root 7scenes --views 2 --tables pose --device cpu",
    "--tables mapper": "--scenes 1 --walk-frames 30",
    "evaluate": "--scenes 1 --views 2 4 --tables pose",
    "train --config": "--steps 2 --device cpu",
    "benchmark network": "--model demo --views 2 --size 64x48 --runs 1 --device cpu",
    "benchmark window": "--model demo --views 3 --slides 1 --size 64x48",
    "benchmark scale": "--model demo --views 3 --size 64x48 --runs 1",
    "benchmark acceleration": "--views 3 --runs 1",
    "benchmark precision": "--views 2 --size 64x48",
    "benchmark indices": "--scenes 1 --views 2",
    "benchmark mapping": "window_cost --runs 1",
    "benchmark report": "",
}
DRY = "--dry-run --no-index"  # packages are not downloaded: those installed for the tests have to suffice
# Command -> its short form for a shell, in a folder with a copy of the sources.
SHELL = {
    "python3 -m venv .venv-offline && . .venv-offline/bin/activate": "python3 -m venv --without-pip "
    ".venv-offline && . .venv-offline/bin/activate && test $VIRTUAL_ENV = $PWD/.venv-offline",
    "pip install '.[viewer]'": f"pip install {DRY} --no-build-isolation '.[viewer]'",
    "pip install -r requirements/train.txt": f"pip install {DRY} -r requirements/train.txt",
}
NEEDS = {"viewer": "viser", ".rrd": "rerun"}  # part of a command -> package that it needs
OTHER_NETWORKS = r"--model toy:"  # of packages that are not installed where these commands run
# Pattern of a command -> (file, what runs it: the name of a test, or a text of a script that is part of
# continuous integration).
ELSEWHERE = {
    r"make test": (".ci/run", "exec make test"),
    r"make setup": ("scripts/run_tests.sh", "setup_environment.py --for test"),
    r"make check": ("Makefile", "run_tests.sh fast"),
    r"\. scripts/ros_env\.sh": ("scripts/run_tests.sh", ". scripts/ros_env.sh"),
    r"ruff check \. && ruff format --check \. && mypy": (
        "scripts/run_tests.sh",
        "ruff format --check",
    ),
    r"python -m pytest -q test/io": ("scripts/run_tests.sh", "python -m pytest --ignore"),
    r"colcon build --packages-select fast3r_ros": (
        "scripts/setup_environment.py",
        "from colcon_core.command",
    ),
    r"\. install/setup\.bash": (
        "scripts/ros_env.sh",
        '. "$fast3r_root/install$fast3r_suffix/local_setup.bash"',
    ),
    r"make demo": (
        "test/ros/test_ros_demo.py",
        "test_the_demo_ends_by_itself_and_leaves_map_trajectory_and_picture",
    ),
    r"make demo MODEL=da3:small": (
        "test/package/test_package_setup.py",
        "test_the_package_of_a_network_is_installed_once_and_alone",
    ),
    r"make demo SOURCE=walk\.mp4": ("test/ros/test_ros_docs.py", "test_the_demo_maps_a_video"),
    r"pip install \.": (
        "test/package/test_package_pip_install.py",
        "test_the_command_is_installed_and_helps_quickly",
    ),
    r"fast3r reconstruct .* --model toy:small .*": (
        "test/networks/test_networks_package.py",
        "test_it_maps_the_walk_in_metres",
    ),
    r"python docs/pictures/regenerate\.py": ("test/cli/test_cli_docs.py", "test_script_makes_the_pictures"),
    r"scripts/gpu_figures\.sh": (
        "test/benchmark/test_benchmark_gpu_figures.py",
        "test_every_figure_is_measured_and_a_failed_step_is_named",
    ),
    r"ros2 launch fast3r_ros .*": (
        "test/package/test_package_launch.py",
        "test_launch_commands_of_the_docs_start_nodes",
    ),
    r"ros2 (topic echo|service call|param set) .*": (
        "test/ros/test_ros_docs.py",
        "test_documented_calls_to_the_node_work",
    ),
    r"\S.* benchmark node.*": ("test/ros/test_ros_docs.py", "test_the_benchmark_of_the_node"),
}


def in_this_process() -> list[str]:
    """The arguments of our commands that run in this process."""
    ours = [arguments for arguments in map(of_fast3r, commands()) if arguments]
    return [
        each
        for each in ours
        if not each.startswith(("view ", "benchmark node"))
        and "--help" not in each
        and not re.search(OTHER_NETWORKS, each)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, video, small_model):
    """A folder with small versions of the files in the documentation."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(video, folder / "walk.mp4")  # FFmpeg goes by the content, not by the name
    (folder / "photos").mkdir()
    for index, frame in enumerate(open_source(video)):
        Image.fromarray(frame.image).save(folder / "photos" / f"{index}.png")
    write_bag(folder / "walk_bag")
    write_7scenes(folder / "7scenes")
    shutil.copytree(small_model, folder / "jedyang97" / "Fast3R_ViT_Large_512")
    (folder / "test" / "golden").mkdir(parents=True)
    for name in ("loss", "metric", "pose", "preprocess"):  # without the slow ones
        (folder / "test" / "golden" / name).symlink_to(ROOT / "test" / "golden" / name)
    (folder / "config" / "train").mkdir(parents=True)
    for path in (ROOT / "config" / "train").glob("*.yaml"):
        (folder / "config" / "train" / path.name).write_text(shorter_training(path))
    assert (
        main(
            ["reconstruct", str(folder / "walk.mp4"), "--output", str(folder / "walk_map"), *NO_GATES.split()]
        )
        == 0
    )
    return folder


def write_bag(path: Path) -> None:
    """A bag with /camera/image_raw, written by rosbags."""
    store = get_typestore(Stores.ROS2_JAZZY)
    kind = "sensor_msgs/msg/Image"
    with Writer(path, version=9) as writer:
        connection = writer.add_connection("/camera/image_raw", kind, typestore=store)
        for frame in demo_sequence(2.0, width=112, height=80):
            stamp = store.types["builtin_interfaces/msg/Time"](*divmod(frame.stamp_ns, 10**9))
            header = store.types["std_msgs/msg/Header"](stamp, "camera")
            pixels = np.ascontiguousarray(frame.image).reshape(-1)
            message = store.types[kind](header, 80, 112, "rgb8", 0, 336, pixels)
            writer.write(connection, frame.stamp_ns, store.serialize_cdr(message, kind))


def write_7scenes(root: Path) -> None:
    """A scene of three frames in the layout of 7-Scenes."""
    folder = root / "chess" / "seq-01"
    folder.mkdir(parents=True)
    sequence = demo_sequence(0.3, width=112, height=80)
    for index, frame in enumerate(sequence):
        stem = f"frame-{index:06d}"
        Image.fromarray(frame.image).save(folder / f"{stem}.color.png")
        cv2.imwrite(str(folder / f"{stem}.depth.proj.png"), np.full((80, 112), 2000, np.uint16))
        np.savetxt(folder / f"{stem}.pose.txt", sequence.world_from_camera[index])


def shorter_training(path: Path) -> str:
    """A training configuration of the same sections with a small network, small images and few views."""
    content = yaml.safe_load(path.read_text())
    content["model"] = {
        "encoder_args": {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 64},
        "decoder_args": {"embed_dim": 48, "enc_embed_dim": 48, "depth": 10, "num_heads": 2},
        "head_args": {"with_local_head": True, "dpt_feature_dim": 16, "dpt_last_dim": 16},
    }
    content["data"] |= {"width": 64, "height": 48}
    content.pop("recorded", None)  # of data sets that are not here
    content["curriculum"] = [{"from_step": 0, "views": [2]}]
    content["run"] |= {"views_per_step": 4, "precision": "float32", "evaluate_scenes": 1}
    for name in ("initial_weights", "initial_dust3r"):  # weights of other networks
        content["run"].pop(name, None)
    return yaml.safe_dump(content)


def short_form(arguments: str) -> list[str]:
    """The arguments of a command with those that make it short."""
    added = next((extra for part, extra in SHORTER.items() if part in arguments), None)
    assert added is not None, f"say in SHORTER how `fast3r {arguments}` is run in seconds"
    words = shlex.split(arguments)
    if words[:2] == ["reconstruct", "synthetic"]:
        words[1:] = ["synthetic:2", *words[2:], "--output", "room_map"]
    return [*words, *added.split()]


def require(command: str) -> None:
    for part, package in NEEDS.items():
        if part in command and importlib.util.find_spec(package) is None:
            pytest.skip(f"{command}: {package} is not installed here")


@pytest.mark.parametrize("arguments", in_this_process())
def test_command_of_ours_runs(folder, arguments, monkeypatch, capsys):
    require(arguments)
    monkeypatch.chdir(folder)
    if arguments.startswith("benchmark report"):
        for name in ("network", "window"):
            if not (folder / f"{name}.json").exists():  # written below, in a run of all tests
                assert main(short_form(f"benchmark {name}")) == 0
                (folder / f"{name}.json").write_text(capsys.readouterr().out)
    threads = torch.get_num_threads()
    try:
        status = main(short_form(arguments))
    finally:
        torch.set_num_threads(threads)
    output = capsys.readouterr()
    assert status == 0, output.err
    if arguments.startswith("benchmark "):
        (folder / f"{arguments.split()[1]}.json").write_text(output.out)


def test_help_is_shown(capsys):
    shown = [arguments for arguments in map(of_fast3r, commands()) if arguments and "--help" in arguments]
    assert shown
    for arguments in shown:
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(arguments))
        assert ended.value.code == 0
        assert "usage: fast3r" in capsys.readouterr().out


@pytest.mark.parametrize("command", [each for each in commands() if each.startswith("torchrun ")])
def test_command_on_two_processes_runs(folder, command, child_environment, monkeypatch):
    """Training runs here on one: test_training_run compares two, with the environment that torchrun makes."""
    match = re.match(r"torchrun --nproc[-_]per[-_]node \d+ -m fast3r_ros (.*)", command)
    assert match, command
    if match[1].startswith("train "):
        monkeypatch.chdir(folder)
        assert main(short_form(match[1])) == 0
        return
    extra = ["--device", "cpu", "--max-views", "3"] if match[1].startswith("reconstruct") else []
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "fast3r_ros", *short_form(match[1]), *extra],
        cwd=folder,
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [each for each in commands() if each.startswith("fast3r view ")])
def test_view_shows_a_page_until_ctrl_c(folder, command, child_environment):
    pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
    program = [sys.executable, "-m", "fast3r_ros", *shlex.split(command)[1:]]
    process = subprocess.Popen(
        program, cwd=folder, env=child_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        pattern = r"points, \d+ cameras: (http://127\.0\.0\.1:\d+)"
        found = (re.search(pattern, line) for line in iter(process.stdout.readline, ""))
        address = next((match[1] for match in found if match), None)
        assert address, process.communicate()[1]
        with urllib.request.urlopen(address, timeout=HANG_SECONDS) as page:
            assert b"<html" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_SECONDS) == 0
    finally:
        process.kill()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what these commands read of the repository: pip writes beside the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(
        ROOT / "fast3r_ros", copy / "fast3r_ros", ignore=shutil.ignore_patterns("weights", "__pycache__")
    )
    (copy / "requirements").symlink_to(ROOT / "requirements")
    return copy


@pytest.mark.parametrize("command", SHELL)
def test_command_of_a_shell_runs(sources, command, child_environment):
    require(command)
    environment = {name: value for name, value in child_environment.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    shell = ["bash", "-ec", SHELL[command]]
    done = subprocess.run(
        shell, cwd=sources, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_shown_command_is_run_by_a_test():
    here = {
        f"{program}{arguments}"
        for arguments in in_this_process()
        for program in ("fast3r ", "python -m fast3r_ros ")
    }
    assert set(SHELL) <= set(commands()), "tests of commands that are no longer shown"
    for command in commands():
        if command in here or command in SHELL or command.startswith(("torchrun ", "fast3r view ")):
            continue
        if "--help" in command and of_fast3r(command):
            continue
        places = [place for pattern, place in ELSEWHERE.items() if re.fullmatch(pattern, command)]
        assert len(places) == 1, f"`{command}` is shown in the documentation: say here which test runs it"
        file, what = places[0]
        content = (ROOT / file).read_text(encoding="utf-8")
        if what.startswith("test_"):
            names = [node.name for node in ast.parse(content).body if isinstance(node, ast.FunctionDef)]
            assert what in names, f"`{command}`: {file} has no {what}"
        else:
            assert what in content, f"`{command}`: {file} has no line with {what}"


def test_commands_that_are_not_run_are_marked():
    assert languages() == {"bash", "console", "python", "text", "toml", "yaml"}
    assert text_without_a_word_on_tests() == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(blocks(page, "python"))], ids=lambda page: page.name
)
def test_code_of_the_documentation_runs(page, tmp_path, monkeypatch, capsys):
    """The blocks of a page one after the other, with what they take from elsewhere."""
    from fast3r_ros.mapping.config import MapperConfig
    from fast3r_ros.mapping.mapper import Mapper
    from fast3r_ros.synthetic.oracle_network import OracleNetwork

    monkeypatch.chdir(tmp_path)
    sequence = demo_sequence(2.0, width=112, height=80)
    frames = list(sequence)
    (tmp_path / "photos").mkdir()
    for index, frame in enumerate(demo_sequence(6.0, rate=1.0)):  # of the size that the demo model knows
        Image.fromarray(frame.image).save(tmp_path / "photos" / f"{index}.jpg")
    names = {
        "photographs": [frame.image for frame in frames[:8]],
        "my_camera": lambda: [(frame.stamp_ns, frame.image) for frame in frames],
        "network": OracleNetwork(sequence),
        "frame": frames[0],
        "stamp_ns": frames[0].stamp_ns,
        "odom_from_base": np.eye(4),
        "Mapper": Mapper,
        "MapperConfig": MapperConfig,
    }
    for block in blocks(page, "python"):
        with torch.inference_mode():
            exec(block, names)
        for value in re.findall(r"^print\(.*# ([\d.]+)$", block, re.M):
            assert float(capsys.readouterr().out) == pytest.approx(float(value), abs=0.051)
