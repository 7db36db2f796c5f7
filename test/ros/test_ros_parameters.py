"""Parameters: every one declared with type, description and range; the YAML file is the same; old names."""

import json
import re
import threading
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS is not installed here")

import rclpy
from patience import HANG_SECONDS, wait_until
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from ros_harness import DOUBLE, NODE, Listener, Program, domain, running

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.ros import replay_node
from fast3r_ros.ros.mapping_node import MappingNode
from fast3r_ros.ros.node_config import NodeConfig, TransformConfig
from fast3r_ros.ros.parameters import (
    config_from_values,
    declared_fields,
    parameter_fields,
    with_changes,
    yaml_text,
)
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import demo_sequence

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
    assert list(values) == [name for name, _, _ in declared_fields(NodeConfig())]


def test_the_parameters_are_those_that_a_user_has_a_reason_to_change() -> None:
    """Parameters of the mapper and of the node; the others are constants that Python sets."""
    names = {name for name, _, _ in declared_fields(NodeConfig())}
    assert len(names) <= 48
    mapper = set(MapperConfig().to_flat())
    assert {"window.size", "scale.source", "loop.interval"} <= names & mapper
    constants = {name for name, _, _ in parameter_fields(NodeConfig())} - names
    assert {"registration.pixels", "loop.background", "map.moved_per_window"} <= constants & mapper
    assert {"tf.rate", "grid.min_points", "torch_threads"} <= constants - mapper


FIRST_WORDS = re.compile(
    r"(Maximum|Minimum|Number|Share|Size|Edge length|Height|Length|Rate|Time|Confidence|Names?|Path|Address"
    r"|Token|Port number|Device|Precision|Frame|Source|Transport|Reliability|Approximate speed-ups|Use|Search"
    r"|Broadcast|Publication|Localisation|Optimisation|Motion|Automatic configuration)\b"
)
UNITS = re.compile(
    r"[Nn]umber |\bin (metres|seconds|Hz|MiB)\b|share of|Share of|\(cosine|cosine of|multiple of|without unit"
)


def test_every_description_starts_with_what_it_is_and_gives_the_unit() -> None:
    for name, item, default in parameter_fields(NodeConfig()):
        text = item.metadata["description"]
        assert FIRST_WORDS.match(text), (name, text)
        assert not text.endswith("."), (name, text)
        if type(default) in (int, float):
            assert UNITS.search(text), (name, text)
            assert item.metadata["range"], name
        for choice in item.metadata["choices"] or ():
            assert re.search(rf"\b{choice}\b", text), (name, choice)


def test_every_parameter_is_documented() -> None:
    """The node's in config/mapping.yaml, which the page shows (test_cli_docs); the replay node's here."""
    text = (ROOT / "docs" / "parameters.md").read_text()
    for name, (value, meaning) in replay_node.PARAMETERS.items():
        default = json.dumps(value)
        assert f"| `{name}` | `{default}` | {meaning} |" in text


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
def test_invalid_values_are_rejected_with_the_reason(name: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        with_changes(NodeConfig(), [Parameter(name, value=value)])


def test_changes_reach_their_section_and_others_are_left_alone() -> None:
    changes = [Parameter("keyframes.motion", value=0.2), Parameter("use_sim_time", value=True)]
    config = with_changes(NodeConfig(), changes)
    assert config.mapper.keyframes.motion == 0.2
    assert config.output == NodeConfig().output
    cameras = with_changes(NodeConfig(), [Parameter("cameras", value=["front", "", "rear"])])
    assert cameras.cameras == ("front", "rear")


RETIRED = {
    "registration.retries": "registration.retries is no longer a parameter of the node and stays 1; remove "
    "it here, or set it in Python",
    "map.keyframes_refused": "map.keyframes_refused, now map.moved_per_window, is no longer a parameter of "
    "the node and stays 8; remove it here",
    "window.sise": "window.sise is not a parameter of the node; did you mean window.size",
}


def test_a_retired_name_at_start_is_reported_and_has_no_effect(tmp_path: Path) -> None:
    """From a file or with -p; names for another node are ignored."""
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump({"/**": {"ros__parameters": {"registration": {"retries": 3}}}}))
    others = ["-p", "map.keyframes_refused:=3", "-p", "window.sise:=8", "-p", "robot_description:=xml"]
    words = ["--ros-args", "--params-file", str(file), *others, "-p", "autostart:=false"]
    node = Program([*DOUBLE, "0.0", *words], domain(24))
    with running(node):
        wait_until(lambda: all(text in node.output() for text in RETIRED.values()), "the sentences")
        assert node.output().count("ignored: ") == 3
        assert "robot_description" not in node.output()
        assert node.process.poll() is None


def test_a_retired_name_is_rejected_at_run_time_with_advice() -> None:
    domain_id = domain(25)
    rclpy.init(domain_id=domain_id)
    node = MappingNode(lambda config: OracleNetwork(demo_sequence()))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    listener = Listener(domain_id)
    try:
        names = [*RETIRED, "quite.another", "keyframes.motion"]
        changes = [Parameter(name, value=0.5).to_parameter_msg() for name in names]
        answer = listener.call(SetParameters, f"{NODE}/set_parameters", parameters=changes)
        assert [each.successful for each in answer.results] == [False] * 4 + [True]
        for result, text in zip(answer.results, RETIRED.values(), strict=False):
            assert result.reason.startswith(text)
        assert "the node has no parameter quite.another" in answer.results[3].reason
        kind, service = SetParametersAtomically, f"{NODE}/set_parameters_atomically"
        together = listener.call(kind, service, parameters=changes).result
        assert not together.successful
        assert all(text in together.reason for text in RETIRED.values())
    finally:
        listener.close()
        executor.shutdown()
        spinning.join(HANG_SECONDS)
        node.stop()
        node.destroy_node()
        rclpy.shutdown()


def test_python_sets_what_is_no_parameter_and_the_defaults_of_what_is() -> None:
    mapper = MapperConfig.from_flat({"registration.retries": 3, "window.stride": 2})
    rclpy.init(domain_id=domain(25))
    node = MappingNode(
        lambda config: OracleNetwork(demo_sequence()),
        NodeConfig(mapper=mapper, tf=TransformConfig(rate=5.0), cameras=("front",)),
    )
    try:
        assert node.config.mapper == mapper
        assert node.config.tf.rate == 5.0
        assert node.config.cameras == ("front",)
        assert node.get_parameter("window.stride").value == 2
        assert not node.has_parameter("registration.retries")
        node.set_parameters([Parameter("keyframes.motion", value=0.2)])
        assert node.config.mapper.registration.retries == 3
    finally:
        node.destroy_node()
        rclpy.shutdown()
