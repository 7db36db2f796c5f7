"""The settings of RViz, Foxglove and Nav2 in config/: valid names, and existing topics."""

import json
import re
import typing
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.ros.outputs import LATCHED, TOPICS

ROOT = Path(__file__).resolve().parents[2]
# what RViz and Nav2 of Jazzy, Kilted and newer know, as far as it is of use here
KNOWN = yaml.safe_load("""
rviz: [rviz_common/Displays, rviz_common/Views, rviz_default_plugins/Grid, rviz_default_plugins/TF,
  rviz_default_plugins/PointCloud2, rviz_default_plugins/Path, rviz_default_plugins/Odometry,
  rviz_default_plugins/Image, rviz_default_plugins/Map, rviz_default_plugins/MarkerArray,
  rviz_default_plugins/SetInitialPose, rviz_default_plugins/SetGoal, rviz_default_plugins/MoveCamera,
  rviz_default_plugins/Select,
  rviz_default_plugins/FocusCamera, rviz_default_plugins/Measure, rviz_default_plugins/Orbit]
costmap: [global_frame, robot_base_frame, update_frequency, publish_frequency, rolling_window, width, height,
  resolution, robot_radius, footprint, transform_tolerance, track_unknown_space, plugins]
voxel_layer: [plugin, enabled, origin_z, z_resolution, z_voxels, min_obstacle_height, max_obstacle_height,
  mark_threshold, unknown_threshold, publish_voxel_map, observation_sources, combination_method]
source: [topic, data_type, marking, clearing, min_obstacle_height, max_obstacle_height, obstacle_min_range,
  obstacle_max_range, raytrace_min_range, raytrace_max_range, observation_persistence, expected_update_rate,
  sensor_frame, inf_is_valid]
inflation_layer: [plugin, enabled, cost_scaling_factor, inflation_radius]
""")


def test_rviz_shows_the_nodes_topics_with_their_qos():
    settings = yaml.safe_load((ROOT / "config" / "mapping.rviz").read_text())
    manager = settings["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == "map"
    displays = manager["Displays"]
    used = [*settings["Panels"], *displays, *manager["Tools"], manager["Views"]["Current"]]
    assert {each["Class"] for each in used} <= set(KNOWN["rviz"])
    topics = {each["Topic"]["Value"]: each["Topic"] for each in displays if "Topic" in each}
    wanted = {"map_cloud", "cloud", "confidence_color", "path", "grid", "depth/image_rect", "markers"}
    assert {f"/fast3r_mapping/{name}" for name in wanted} | {"/image"} <= set(topics)
    assert "rviz_default_plugins/TF" in {each["Class"] for each in displays}
    tools = {each["Class"] for each in manager["Tools"]}
    assert {"rviz_default_plugins/SetInitialPose", "rviz_default_plugins/SetGoal"} <= tools
    (cloud,) = [each for each in displays if each["Name"] == "Map"]
    assert cloud["Style"] == "Points"  # a size in the map's unit would change when metres come
    for topic, qos in topics.items():
        if topic != "/image":
            latched = TOPICS[topic.removeprefix("/fast3r_mapping/")][1] is LATCHED
            assert qos["Durability Policy"] == ("Transient Local" if latched else "Volatile"), topic
            assert qos["Reliability Policy"] == "Reliable"


def test_the_costmap_is_fed_by_the_cloud():
    settings = yaml.safe_load((ROOT / "config" / "nav2_costmap.yaml").read_text())
    costmap = settings["costmap"]["costmap"]["ros__parameters"]  # namespace and node of nav2_example
    layers = costmap["plugins"]
    assert set(costmap) - set(layers) <= set(KNOWN["costmap"])
    voxels, inflation = costmap["voxel_layer"], costmap["inflation_layer"]
    names = voxels["observation_sources"].split()
    assert set(voxels) - set(names) <= set(KNOWN["voxel_layer"])
    assert set(inflation) <= set(KNOWN["inflation_layer"])
    plugins = [layer["plugin"] for layer in (voxels, inflation)]
    assert plugins == ["nav2_costmap_2d::VoxelLayer", "nav2_costmap_2d::InflationLayer"]
    for source in (voxels[name] for name in names):
        assert set(source) <= set(KNOWN["source"])
        assert (source["topic"], source["data_type"]) == ("/fast3r_mapping/cloud", "PointCloud2")
    assert voxels["z_voxels"] <= 16  # Nav2 keeps a column in 32 bits, two per voxel
    assert voxels["max_obstacle_height"] <= voxels["origin_z"] + voxels["z_voxels"] * voxels["z_resolution"]


def test_obstacles_are_marked_and_the_floor_clears():
    """Nav2's own rules: a source drops points outside its heights; a column with more marked voxels than
    `mark_threshold` is lethal; the clearing rays must begin inside the voxels.
    """
    settings = yaml.safe_load((ROOT / "config" / "nav2_costmap.yaml").read_text())
    voxels = settings["costmap"]["costmap"]["ros__parameters"]["voxel_layer"]
    sources = [voxels[name] for name in voxels["observation_sources"].split()]
    marking = [source for source in sources if source["marking"]]
    clearing = [source for source in sources if source["clearing"]]

    def lethal(height: float) -> bool:
        """A column of points from the floor to this height, every centimetre."""
        points = [0.01 * step for step in range(round(100 * height) + 1)]
        bounds = [(source["min_obstacle_height"], source["max_obstacle_height"]) for source in marking]
        seen = [z for z in points if any(low <= z <= high for low, high in bounds)]
        marked = {int((z - voxels["origin_z"]) / voxels["z_resolution"]) for z in seen}
        return len(marked) > voxels["mark_threshold"]

    assert [lethal(height) for height in (0.02, 0.15, 0.25, 0.35, 1.0)] == [False, True, True, True, True]
    assert any(source["min_obstacle_height"] < -0.1 for source in clearing)  # the floor, with its noise
    top = voxels["origin_z"] + voxels["z_voxels"] * voxels["z_resolution"]
    assert top >= 2.0  # a camera above cannot clear


def foxglove_panels():
    """The panels of the layout: (kind, settings)."""
    layout = json.loads((ROOT / "config" / "foxglove.json").read_text(encoding="utf-8"))
    return layout, [(name.partition("!")[0], panel) for name, panel in layout["configById"].items()]


def test_foxglove_shows_the_nodes_topics():
    layout, panels = foxglove_panels()
    shown = json.dumps(panels)
    for topic in ("map_cloud", "cloud", "confidence_color", "path", "grid", "depth/image_rect", "markers"):
        assert f'"/fast3r_mapping/{topic}"' in shown
    for topic in re.findall(r'"/fast3r_mapping/([^"]+)"', shown):
        assert topic in {*TOPICS, "status"}, topic
    leaves, nodes = [], [layout["layout"]]
    while nodes:  # every panel has one place
        node = nodes.pop()
        if isinstance(node, str):
            leaves.append(node)
            continue
        assert node["direction"] in ("row", "column")
        assert 0 < node["splitPercentage"] < 100
        nodes += [node["first"], node["second"]]
    assert sorted(leaves) == sorted(layout["configById"])


def test_foxglove_knows_every_setting():
    """By Foxglove's own types of its panels' settings; files keep them as the app writes them."""
    layouts = pytest.importorskip(
        "foxglove.layouts", reason="foxglove-sdk is not installed: requirements/test.txt"
    )
    kinds = {
        "3D": layouts.ThreeDeeConfig,
        "Image": layouts.ImageConfig,
        "DiagnosticSummary": layouts.DiagnosticsSummaryConfig,
        "RawMessages": layouts.RawMessagesConfig,
    }
    topics = {
        "map_cloud": layouts.BaseRendererPointCloudTopicSettings,
        "cloud": layouts.BaseRendererPointCloudTopicSettings,
        "path": layouts.BaseRendererPosesTopicSettings,
        "odometry": layouts.BaseRendererPoseTopicSettings,
        "grid": layouts.BaseRendererRosOccupancyGridTopicSettings,
        "markers": layouts.BaseRendererRosMarkerTopicSettings,
    }
    inner = {
        "cameraState": layouts.ThreeDeeCameraState,
        "publish": layouts.ThreeDeePublishSettings,
        "scene": layouts.BaseRendererSceneSettings,
        "imageMode": layouts.ImageModeConfig,
    }

    def choices(hint):
        return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()

    def check(kind, settings):
        given = {re.sub(r"([A-Z])", r"_\1", key).lower(): value for key, value in settings.items()}
        if given.pop("layer_id", None):
            assert settings["layerId"] == "foxglove.Grid"
        made = kind(**given)._to_dict()  # a TypeError names a setting that does not exist
        assert {key: made[key] for key in settings} == settings
        hints = typing.get_type_hints(kind, vars(layouts))
        for name, value in given.items():
            allowed = [
                each for part in (hints[name], *typing.get_args(hints[name])) for each in choices(part)
            ]
            assert not allowed or value in allowed, (kind.__name__, name, value)
        for key, each in settings.items():
            if key in inner:
                check(inner[key], each)
        for topic, each in settings.get("topics", {}).items():
            check(topics[topic.removeprefix("/fast3r_mapping/")], each)
        for each in settings.get("layers", {}).values():
            check(layouts.BaseRendererGridLayerSettings, each)

    for kind, settings in foxglove_panels()[1]:
        check(kinds[kind], settings)
