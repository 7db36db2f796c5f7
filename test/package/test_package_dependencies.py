"""The lists of dependencies (package.xml, setup.cfg) against what the code imports, and licences."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

pytest.importorskip("rclpy", reason="ROS is not installed here")

import rclpy
from fast3r_ros.msg import MappingStatus
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PRODUCT = ROOT / "fast3r_ros"
# rosdep's keys, as ros/rosdistro's rosdep/python.yaml resolves them on Ubuntu, and the distributions of PyPI
KEYS = {
    "python3-matplotlib": "matplotlib",
    "python3-numpy": "numpy",
    "python3-opencv": "opencv-python-headless",
    "python3-pil": "pillow",
    "python3-scipy": "scipy",
    "python3-torch": "torch",  # no key: docs/robot.md installs it with pip and skips it
    "python3-tqdm": "tqdm",
    "python3-yaml": "pyyaml",
}
MODULES = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "OpenEXR": "openexr",
    "pillow_heif": "pillow-heif",
    "rerun": "rerun-sdk",
}
# What belongs to one optional feature, which names it in one line when it is missing.
OPTIONAL = {
    "mcap",
    "pillow-heif",
    "pycolmap",
    "rosbags",
    "zstandard",
    "trimesh",
    "huggingface-hub",
    "h5py",
    "openexr",
    "tensorboard",
    "viser",
    "websockets",
    "msgspec",
}
OPTIONAL |= {"open3d", "rerun-sdk", "deepspeed", "flash-attn", "pycolmap"}
THROUGH_TORCH = {"flash-attn", "tensorboard"}  # torch or a table of names imports these for us
# What is not installed where the tests run or does not say: the licence that its project page names.
ELSEWHERE = {
    "open3d": "MIT",
    "openexr": "BSD-3-Clause",
    "pillow-heif": "BSD-3-Clause",  # an extra; its wheels carry libheif, LGPL, as a library of its own
    "pycolmap": "BSD-3-Clause",
    "flash-attn": "BSD-3-Clause",
    "deepspeed": "Apache-2.0",
    "rerun-sdk": "MIT OR Apache-2.0",
}
GOOD = (
    r"Apache|BSD|MIT|ISC|HPND|PSF|Python Software Foundation|Zlib|MPL|Mozilla|Unlicense|CC0|0BSD|NumPy|Boost"
)
BAD = r"GPL|GNU|AGPL|SSPL|Commons Clause|Non-?Commercial|Proprietary"


def imported(*folders: Path) -> dict[str, Path]:
    """Top-level modules that files import anywhere, at their head or within a function, and one such file."""
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                function = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if function in ("installed", "optional_package", "import_module"):
                    names = [str(node.args[0].value)]
            found.update({name.split(".")[0]: path for name in names})
    return {
        name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "fast3r_ros"}
    }


def is_ros(module: str) -> bool:
    return bool(
        re.search(
            r"^(rclpy|launch|ament_|cv_bridge|tf2_ros|tf_tr|sensor_msgs_py)|_msgs$|_srvs$|_interfaces$",
            module,
        )
    )


def distributions() -> set[str]:
    """Distributions of PyPI that the product imports."""
    names = {MODULES.get(each, each) for each in imported(PRODUCT) if not is_ros(each)}
    return {canonicalize_name(name) for name in names | THROUGH_TORCH}


def declared(*kinds: str) -> set[str]:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    return {element.text or "" for element in package if element.tag in kinds}


def required(section: str, option: str) -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config[section][option].strip().splitlines()
    return {canonicalize_name(Requirement(line).name) for line in lines if line and line[0] != "#"}


def test_setup_cfg_names_what_is_imported() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = set(config["options.extras_require"]) - {"ros"}
    core = required("options", "install_requires")
    more = set().union(*(required("options.extras_require", extra) for extra in extras))
    assert core | more | {"pycolmap"} == distributions()  # pycolmap: a program to compare with


def test_package_xml_names_what_is_imported() -> None:
    ros = {
        {"tf2_ros": "tf2_ros_py"}.get(each, each)
        for each in imported(PRODUCT, ROOT / "launch")
        if is_ros(each)
    }
    python = {name for name in declared("depend", "exec_depend") if name.startswith("python3-")}
    assert declared("depend", "exec_depend") - python - {"rosidl_default_runtime"} == ros
    assert {KEYS[name] for name in python} == distributions() - OPTIONAL
    assert "rviz2" not in declared("depend", "exec_depend")


def test_package_xml_names_who_to_ask() -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    urls = {element.get("type"): element.text for element in package.findall("url")}
    assert urls.keys() == {"website", "repository", "bugtracker"}
    (maintainer,) = package.findall("maintainer")
    assert re.fullmatch(r"[^@\s]+@[^@\s]+\.[a-z]{2,}", maintainer.get("email", ""))


@pytest.mark.parametrize("name", sorted(distributions()))
def test_every_licence_goes_with_apache(name: str) -> None:
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        licence = ELSEWHERE[name]
    else:
        classifiers = [each for each in about.get_all("Classifier", []) if each.startswith("License ::")]
        said = about.get("License-Expression") or ", ".join(classifiers) or (about.get("License") or "")
        licence = said.splitlines()[0] if said else ELSEWHERE.get(name, "")
    assert re.search(GOOD, licence), f"{name}: {licence!r} is no licence that we know to go with Apache-2.0"
    assert not re.search(BAD, licence.replace("Zope", "")), f"{name}: {licence}"


def test_the_licence_test_can_fail() -> None:
    judges = {name: metadata.metadata(name) for name in ("plyfile", "evo")}  # of the tests, and under the GPL
    for name, about in judges.items():
        said = " ".join(
            [
                about.get("License-Expression") or "",
                about.get("License") or "",
                *about.get_all("Classifier", []),
            ]
        )
        assert re.search(BAD, said), name
        assert name not in distributions()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Variables of a process that can import what package.xml declares, and nothing else."""
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    shutil.copy(HERE / "only_declared.py", blocker / "sitecustomize.py")
    names = declared("depend", "exec_depend") - {"tf2_ros_py"} | {"tf2_ros"}
    names = {KEYS.get(name, name) for name in names} | {f"ros-{name.replace('_', '-')}" for name in names}
    names |= {"fast3r_ros"}
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(blocker), os.environ.get("PYTHONPATH", "")]),
        "DECLARED": " ".join(sorted(names)),
        "ROS_DOMAIN_ID": str(1 + (os.getpid() * 7 + 93) % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(environ: dict[str, str], module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_what_is_not_declared_is_blocked(environ: dict[str, str]) -> None:
    for name in (
        "rosbags",
        "safetensors",
        "plyfile",
        "trimesh",
        "huggingface_hub",
        "evo",
        "viser",
        "hypothesis",
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env=environ, capture_output=True, text=True
        )
        assert "package.xml does not declare it" in done.stderr, name


def test_the_mapping_node_starts_with_what_is_declared(environ: dict[str, str]) -> None:
    context = Context()
    rclpy.init(context=context, domain_id=int(environ["ROS_DOMAIN_ID"]))
    command = [sys.executable, "-m", "fast3r_ros.ros.mapping_node"]
    process = subprocess.Popen(
        command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    states: list[int] = []
    try:
        node = rclpy.create_node("declared", context=context)
        node.create_subscription(
            MappingStatus, "/fast3r_mapping/status", lambda status: states.append(status.state), 10
        )
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        end = time.monotonic() + 240
        while MappingStatus.WAITING not in states and process.poll() is None and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.5)
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=60)
        rclpy.shutdown(context=context)
    assert MappingStatus.WAITING in states, output
    limits = re.findall(
        r"only knows synthetic rooms.*\n.*ros2 launch fast3r_ros mapping.launch.py model:=", output
    )
    assert len(limits) == 2, output  # first and last


def test_the_replay_node_plays_with_what_is_declared(
    environ: dict[str, str], images: Path, tmp_path: Path
) -> None:
    play = ["--ros-args", "-p", "wait_for_subscriber:=0.0", "-p"]
    done = run(environ, "fast3r_ros.ros.replay_node", *play, f"source:={images}")
    assert done.returncode == 0, done.stderr
    (tmp_path / "walk.mcap").write_bytes(b"\x89MCAP0\r\n")
    done = run(environ, "fast3r_ros.ros.replay_node", *play, f"source:={tmp_path / 'walk.mcap'}")
    assert done.returncode == 2
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert "mcap: pip install mcap" in line


def test_the_demo_starts_with_what_is_declared(environ: dict[str, str], images: Path, tmp_path: Path) -> None:
    done = run(environ, "fast3r_ros.ros.demo", "--source", str(images), "--output", str(tmp_path / "output"))
    assert (tmp_path / "output" / "preview.png").is_file(), done.stdout + done.stderr  # all of its steps
    assert "2 played, 2 received" in done.stdout
    lines = re.findall(r"only knows synthetic rooms.*\n  make demo SOURCE=(\S+) MODEL=\S+/\S+\n", done.stdout)
    assert lines == [str(images)] * 2, done.stdout  # first and last
