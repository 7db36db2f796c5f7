"""The nodes and parameters started by the launch files, and errors for missing packages."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS is not installed here")

from domains import domain
from launch_stand_in import load
from patience import HANG_SECONDS

from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.parameters import declared_fields

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
WANTED = {
    "mapping.launch.py": "namespace params_file model image camera_info tf_mode rviz use_sim_time log_level",
    "replay.launch.py": "source topic rate loop namespace params_file model rviz log_level",
    "realsense.launch.py": "image camera_info depth scale_source",
    "usb_cam.launch.py": "image camera_info",
    "oak.launch.py": "image camera_info depth scale_source",
    "rig.launch.py": "cameras image scale_source",
    "nav2_example.launch.py": "image odometry scale_source model costmap_params_file use_sim_time",
}


def arguments(module, **given: str) -> dict[str, str]:
    """Every launch argument with its default or the given value."""
    return {**{name: default for name, default, _ in module.ARGUMENTS}, **given}


def kinds(actions) -> list[str]:
    return [type(action).__name__ for action in actions]


def pretend_installed(package: str, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a package to an ament index, like its installation."""
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    index.mkdir(parents=True, exist_ok=True)
    (index / package).touch()
    path = os.environ["AMENT_PREFIX_PATH"]
    if str(prefix) not in path:
        monkeypatch.setenv("AMENT_PREFIX_PATH", f"{prefix}{os.pathsep}{path}")


@pytest.mark.parametrize("name", WANTED)
def test_launch_files_have_their_arguments_with_a_description(name, monkeypatch):
    module = load(LAUNCH / name, monkeypatch)
    assert set(WANTED[name].split()) <= {argument for argument, _, _ in module.ARGUMENTS}
    assert all(text for _, _, text in module.ARGUMENTS)
    description = module.generate_launch_description()
    declared = [
        each.values[0] for each in description.values[0] if kinds([each]) == ["DeclareLaunchArgument"]
    ]
    assert declared == [argument for argument, _, _ in module.ARGUMENTS]


def test_launch_arguments_become_parameters_and_remappings(monkeypatch):
    module = load(LAUNCH / "mapping.launch.py", monkeypatch)
    assert set(module.OVERRIDES.values()) <= {name for name, _, _ in declared_fields(NodeConfig())}
    given = arguments(module, image="/front/image_raw", namespace="robot1", model="m", viewer_port="8080")
    (node,) = module.start(given)
    assert (node["package"], node["executable"], node["namespace"]) == (
        "fast3r_ros",
        "mapping_node",
        "robot1",
    )
    assert dict(node["remappings"])["camera_info"] == "/front/camera_info"
    assert node["parameters"][1] == {"model": "m", "viewer.port": 8080, "use_sim_time": False}
    (plain,) = module.start(arguments(module))
    assert plain["parameters"][1] == {"use_sim_time": False}  # the rest is the params_file's


def test_a_fast_dds_profile_is_set_unless_the_user_has_one(monkeypatch):
    module = load(LAUNCH / "mapping.launch.py", monkeypatch)
    old, new = "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"
    for name in (old, new):
        monkeypatch.delenv(name, raising=False)
    for distro, variable in (("jazzy", old), ("kilted", new)):
        monkeypatch.setenv("ROS_DISTRO", distro)
        (action,) = module.large_messages()
        assert action.values[0] == variable
        assert Path(action.values[1]).name == "fastdds.xml"
        assert Path(action.values[1]).is_file()
    monkeypatch.setenv(old, "mine.xml")
    assert module.large_messages() == []


def test_missing_rviz_is_reported_in_one_line_and_the_node_starts(tmp_path, monkeypatch):
    module = load(LAUNCH / "mapping.launch.py", monkeypatch)
    given = arguments(module, rviz="true", namespace="robot1", image="camera/image")
    monkeypatch.setattr(module, "is_installed", lambda package: False)
    node, line = module.start(given)
    assert kinds([node, line]) == ["Node", "LogInfo"]
    assert "rviz2" in line["msg"]
    assert "\n" not in line["msg"]
    monkeypatch.undo()
    module = load(LAUNCH / "mapping.launch.py", monkeypatch)
    pretend_installed("rviz2", tmp_path, monkeypatch)
    _, rviz = module.start(given)
    assert (rviz["package"], Path(rviz["arguments"][1]).is_file()) == ("rviz2", True)
    settings = yaml.safe_load(Path(rviz["arguments"][1]).read_text())
    Path(rviz["arguments"][1]).unlink()
    topics = shown_topics(settings)
    assert topics["Map"] == "/robot1/fast3r_mapping/map_cloud"
    assert topics["Camera"] == "/robot1/camera/image"
    assert settings["Visualization Manager"]["Global Options"]["Fixed Frame"] == "robot1/map"


def shown_topics(settings) -> dict[str, str]:
    """Name of a display -> its topic."""
    displays = settings["Visualization Manager"]["Displays"]
    return {each["Name"]: each["Topic"]["Value"] for each in displays if "Topic" in each}


def test_rviz_follows_the_parameters(tmp_path, monkeypatch):
    module = load(LAUNCH / "mapping.launch.py", monkeypatch)
    given = arguments(module, image="/cam/image_raw", transport="compressed")
    plain = module.rviz_settings(given)
    assert plain["Visualization Manager"]["Global Options"]["Fixed Frame"] == "map"
    assert shown_topics(plain)["Camera"] == "/cam/image_raw/compressed"  # RViz tells the transport by it
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "/**:\n  ros__parameters:\n    frames: {map: world}\n    cameras: [front, rear]\n"
        "other_node:\n  ros__parameters:\n    frames.map: theirs\n"
        "fast3r_mapping:\n  ros__parameters:\n    input.transport: compressed\n"
    )
    settings = module.rviz_settings(arguments(module, params_file=str(mine)))
    assert settings["Visualization Manager"]["Global Options"]["Fixed Frame"] == "world"
    topics = shown_topics(settings)
    assert "Camera" not in topics
    assert topics["Camera front"] == "/front/image/compressed"
    assert topics["Camera rear"] == "/rear/image/compressed"


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        (
            "realsense",
            {},
            {
                "image": "/camera/camera/color/image_raw",
                "camera_info": "/camera/camera/color/camera_info",
                "depth": "/camera/camera/aligned_depth_to_color/image_raw",
            },
        ),
        ("usb_cam", {}, {"image": "/image_raw", "camera_info": "/camera_info"}),
        (
            "oak",
            {},
            {
                "image": "/oak/rgb/image_raw",
                "camera_info": "/oak/rgb/camera_info",
                "depth": "/oak/stereo/image_raw",
            },
        ),
        (
            "rig",
            {"cameras": "left, right"},
            {
                "left/image": "left/image_raw",
                "left/camera_info": "left/camera_info",
                "right/image": "right/image_raw",
                "right/camera_info": "right/camera_info",
            },
        ),
    ],
)
def test_the_topics_of_cameras_reach_the_node(name, given, wanted, monkeypatch):
    """From a camera's launch file through mapping.launch.py to the node's remappings."""
    camera = load(LAUNCH / f"{name}.launch.py", monkeypatch)
    (include,) = [
        each
        for each in camera.generate_launch_description().values[0]
        if kinds([each]) == ["IncludeLaunchDescription"]
    ]
    values = arguments(camera, **given)
    passed = {key: value.perform(values) for key, value in dict(include["launch_arguments"]).items()}
    mapping = load(LAUNCH / "mapping.launch.py", monkeypatch)
    assert set(passed) <= {argument for argument, _, _ in mapping.ARGUMENTS}
    (node,) = mapping.start(arguments(mapping, **passed))
    topics = dict(node["remappings"])
    assert {key: topics[key] for key in wanted} == wanted
    if name == "rig":
        assert node["parameters"][1]["cameras"] == ["left", "right"]
    scale = node["parameters"][1].get("scale.source")
    assert scale == {"realsense": "depth", "oak": "depth", "rig": "rig"}.get(name)


def test_replay_ends_everything_when_a_node_cannot_work(monkeypatch):
    module = load(LAUNCH / "replay.launch.py", monkeypatch)
    running = SimpleNamespace(is_shutdown=False)

    def after(name: str, status: int) -> list[str]:
        return kinds(module.ended(SimpleNamespace(process_name=name, returncode=status), running))

    assert after("replay_node-1", 0) == ["LogInfo"]
    assert after("replay_node-1", 2) == ["EmitEvent"]
    assert after("mapping_node-2", 2) == ["EmitEvent"]
    assert after("rviz2-3", 0) == []  # closing the window leaves the map


def test_the_nav2_example_starts_nothing_without_nav2(tmp_path, monkeypatch):
    module = load(LAUNCH / "nav2_example.launch.py", monkeypatch)
    description = module.generate_launch_description().values[0]
    assert description[0]["function"] is module.check
    with pytest.raises(RuntimeError, match="nav2_costmap_2d is not installed"):
        module.check(None)
    for package in ("nav2_costmap_2d", "nav2_lifecycle_manager"):
        pretend_installed(package, tmp_path, monkeypatch)
    module.check(None)
    mapping, costmap, manager = description[-3:]
    passed = dict(mapping["launch_arguments"])
    assert (passed["tf_mode"], passed["autostart"]) == ("map_to_odom", "false")
    assert passed["scale_source"].name == "scale_source"
    module.check_scale(arguments(module))  # odometry
    for source in ("none", ""):
        with pytest.raises(RuntimeError, match=f"scale_source is '{source}', but Nav2 needs metres"):
            module.check_scale(arguments(module, scale_source=source))
    assert set(passed) <= {name for name, _, _ in load(LAUNCH / "mapping.launch.py", monkeypatch).ARGUMENTS}
    # the executable's node is called costmap
    names = ["fast3r_mapping", f"{costmap['namespace']}/costmap"]
    assert manager["parameters"][0]["node_names"] == names
    assert manager["parameters"][0]["bond_timeout"] == 0.0


def shown_launches() -> list[tuple[str, str]]:
    """(launch file, arguments) of every `ros2 launch fast3r_ros …` of the documentation."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    shown = re.compile(r"ros2 launch fast3r_ros (\S+\.launch\.py)((?: \w+:=[^\s`]+)*)")
    return sorted({found for page in pages for found in shown.findall(page.read_text(encoding="utf-8"))})


@pytest.mark.parametrize(("name", "shown"), shown_launches())
def test_launch_commands_of_the_docs_start_nodes(name, shown, tmp_path, monkeypatch):
    module = load(LAUNCH / name, monkeypatch)
    given = dict(word.split(":=", 1) for word in shown.split())
    known = {argument for argument, _, _ in module.ARGUMENTS}
    if not hasattr(module, "start") and name != "nav2_example.launch.py":
        mapping = load(LAUNCH / "mapping.launch.py", monkeypatch)  # what a camera's launch file includes
        known |= {argument for argument, _, _ in mapping.ARGUMENTS}
    assert set(given) <= known, "an argument that does not exist"
    if name == "nav2_example.launch.py":
        for package in ("nav2_costmap_2d", "nav2_lifecycle_manager"):
            pretend_installed(package, tmp_path, monkeypatch)
        module.check(None)
        passed = dict(module.generate_launch_description().values[0][-3]["launch_arguments"])
        assert all(passed[argument].name == argument for argument in given)
        return
    if not hasattr(module, "start"):  # a camera's: its topics have a test of their own
        return
    nodes = [each for each in module.start(arguments(module, **given)) if kinds([each]) == ["Node"]]
    assert nodes[0]["package"] == "fast3r_ros"
    set_up = [*nodes[0]["parameters"], dict(nodes[0].named.get("remappings", []))]
    values = {str(value) for each in set_up if isinstance(each, dict) for value in each.values()}
    switches = {"rviz", "use_sim_time"}
    assert {value for argument, value in given.items() if argument not in switches} <= values


@pytest.mark.skipif(importlib.util.find_spec("launch_ros") is None, reason="launch is not installed here")
def test_replay_without_rviz_and_source_leaves_no_process():
    code = f"""
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService()
source = PythonLaunchDescriptionSource({str(LAUNCH / "replay.launch.py")!r})
include = IncludeLaunchDescription(source, launch_arguments=[("source", "/no/such")])
service.include_launch_description(LaunchDescription([include]))
service.run()
"""
    environ = {**os.environ, "ROS_DOMAIN_ID": str(domain(92)), "FAST3R_TEST_OF_LAUNCH": str(os.getpid())}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output = process.communicate(timeout=HANG_SECONDS)[0]
    finally:
        process.send_signal(signal.SIGINT)
    assert len([line for line in output.splitlines() if "rviz2" in line]) == 1, output
    assert "no such source: /no/such" in output
    mark = f"FAST3R_TEST_OF_LAUNCH={os.getpid()}".encode()
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if mark in _read(path)]
    assert not left


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # gone, or somebody else's
