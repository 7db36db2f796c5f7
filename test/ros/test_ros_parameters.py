"""Parameters: every one declared with type, description and range; the YAML file says the same."""

from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS is not installed here")

from rclpy.parameter import Parameter

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.ros.config import NodeConfig
from fast3r_ros.ros.parameters import (
    config_from_values,
    markdown_table,
    parameter_fields,
    with_changes,
    yaml_text,
)

ROOT = Path(__file__).resolve().parents[2]


def flat(tree: dict, prefix: str = "") -> dict:
    result = {}
    for key, value in tree.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return result


def test_the_yaml_file_names_every_parameter_with_its_default() -> None:
    text = (ROOT / "config" / "mapping.yaml").read_text()
    assert text == yaml_text(), "run: python -m fast3r_ros.ros.parameters > config/mapping.yaml"
    values = flat(yaml.safe_load(text)["/**"]["ros__parameters"])
    assert config_from_values(values) == NodeConfig()
    assert set(values) == {name for name, _, _ in parameter_fields(NodeConfig())}


def test_every_parameter_of_the_mapper_is_one_of_the_node() -> None:
    names = {name for name, _, _ in parameter_fields(NodeConfig())}
    mapper = {name for name, _, _ in parameter_fields(MapperConfig())}
    assert mapper
    assert mapper < names
    assert "window.size" in mapper


def test_every_parameter_is_documented() -> None:
    text = (ROOT / "docs" / "ros.md").read_text()
    assert markdown_table() in text, "run: python -m fast3r_ros.ros.parameters markdown"
    assert all(item.metadata["description"] for _, item, _ in parameter_fields(NodeConfig()))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tf_mode", "sideways", "camera, map_to_odom, none"),
        ("tf_mode", "map_to_odom", "scale.source"),
        ("window.size", 1, "between 2 and 128"),
        ("output.map_rate", float("nan"), "between"),
        ("grid.min_height", 5.0, "grid.max_height"),
        ("cameras", ["front", "front"], "twice"),
        ("frames.map", "", "frames.map"),
    ],
)
def test_wrong_values_are_refused_with_the_reason(name: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        with_changes(NodeConfig(), [Parameter(name, value=value)])


def test_changes_reach_their_section_and_others_are_left_alone() -> None:
    changes = [Parameter("keyframes.motion", value=0.2), Parameter("use_sim_time", value=True)]
    config = with_changes(NodeConfig(), changes)
    assert config.mapper.keyframes.motion == 0.2
    assert config.output == NodeConfig().output
    cameras = with_changes(NodeConfig(), [Parameter("cameras", value=["front", "", "rear"])])
    assert cameras.cameras == ("front", "rear")
