"""ROS parameters from the configuration dataclasses: declared, described, ranged, validated, and back.

`python -m fast3r_ros.ros.parameters` prints config/mapping.yaml, with `markdown` the table of docs/ros.md.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from fast3r_ros.errors import UserError
from fast3r_ros.ros.config import NodeConfig
from fast3r_ros.settings import from_flat, parameter_fields

TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple: Parameter.Type.STRING_ARRAY,
}


def declare(node: Node) -> None:
    """Declare every parameter with type, description, range and whether it can change at run time.

    Raises UserError for a value, given at start, that has a wrong type or is out of range.
    """
    for name, item, default in parameter_fields(NodeConfig()):
        try:
            node.declare_parameter(name, _ros_value(default), _descriptor(name, item, default))
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise UserError(f"parameter {name} cannot be used: {error}") from error


def _ros_value(default: Any) -> Any:
    # an empty list has no type in ROS; a list of one empty string is the usual way out
    return (list(default) or [""]) if isinstance(default, tuple) else default


def _descriptor(name: str, item: Field[Any], default: Any) -> ParameterDescriptor:
    metadata = item.metadata
    descriptor = ParameterDescriptor(
        name=name,
        type=TYPES[type(default)].value,
        description=metadata["description"],
        read_only=not metadata["dynamic"],
    )
    if metadata["choices"]:
        descriptor.additional_constraints = "one of " + ", ".join(metadata["choices"])
    if metadata["range"] and isinstance(default, int):
        low, high = (int(bound) for bound in metadata["range"])
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=0)]
    elif metadata["range"]:
        low, high = metadata["range"]
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
    return descriptor


def read(node: Node) -> NodeConfig:
    """The configuration that the node's parameters say.  Raises UserError."""
    values = {name: node.get_parameter(name).value for name, _, _ in parameter_fields(NodeConfig())}
    return config_from_values(values)


def with_changes(config: NodeConfig, changes: Sequence[Parameter]) -> NodeConfig:
    """The configuration after a change of parameters; other names are left alone.  Raises UserError."""
    values = {name: value for name, _, value in parameter_fields(config)}
    values.update({change.name: change.value for change in changes if change.name in values})
    return config_from_values(values)


def config_from_values(values: Mapping[str, Any]) -> NodeConfig:
    """A configuration from dotted names; all must be there.  Raises UserError."""
    given = {  # an empty list has no type in ROS, see `_ros_value`
        name: [word for word in value if word] if isinstance(value, (list, tuple)) else value
        for name, value in values.items()
    }
    config = from_flat(NodeConfig, given)
    assert isinstance(config, NodeConfig)
    return config


def refused(error: UserError) -> SetParametersResult:
    """The answer to a change that cannot be made."""
    return SetParametersResult(successful=False, reason=str(error))


def yaml_text() -> str:
    """config/mapping.yaml: every parameter with its default, its meaning and its range."""
    lines = [
        "# Parameters of the node fast3r_mapping, with their defaults; [run time]: may change at run time.",
        "# Written by `python -m fast3r_ros.ros.parameters`; copy it, change values, pass it as params_file.",
        "",
        "/**:",
        "  ros__parameters:",
    ]
    section: list[str] = []
    for name, item, default in parameter_fields(NodeConfig()):
        *path, key = name.split(".")
        if path != section:
            lines += ["", *(f"{'  ' * (depth + 2)}{word}:" for depth, word in enumerate(path))]
            section = path
        indent = "  " * (len(path) + 2)
        comment = _comment(item)
        lines += [f"{indent}# {line}" for line in textwrap.wrap(comment, 100 - len(indent))]
        lines.append(f"{indent}{key}: {_yaml_value(default)}")
    return "\n".join(lines) + "\n"


def markdown_table() -> str:
    """The parameters as docs/ros.md has them."""
    lines = ["| parameter | type | default | range | run time | meaning |", "| --- " * 6 + "|"]
    for name, item, default in parameter_fields(NodeConfig()):
        bounds, choices = item.metadata["range"], item.metadata["choices"]
        allowed = f"{bounds[0]:g} … {bounds[1]:g}" if bounds else ", ".join(choices or ())
        kind = TYPES[type(default)].name.lower().replace("_", " ")
        value = f"`{_yaml_value(default)}`"
        run_time = "yes" if item.metadata["dynamic"] else ""
        meaning = item.metadata["description"]
        lines.append(f"| `{name}` | {kind} | {value} | {allowed} | {run_time} | {meaning} |")
    return "\n".join(lines) + "\n"


def _comment(item: Field[Any]) -> str:
    metadata = item.metadata
    bounds = f" [{metadata['range'][0]:g} … {metadata['range'][1]:g}]" if metadata["range"] else ""
    return metadata["description"] + bounds + (" [run time]" if metadata["dynamic"] else "")


def _yaml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, tuple)):
        return str(_ros_value(value)).replace("'", '"') if isinstance(value, tuple) else f'"{value}"'
    return repr(value)


if __name__ == "__main__":
    print(markdown_table() if sys.argv[1:] == ["markdown"] else yaml_text(), end="")
