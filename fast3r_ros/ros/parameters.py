"""ROS parameters from the configuration dataclasses: declared, described, ranged, validated, and back.

A field marked as `constant` is not a parameter: it keeps its value of the NodeConfig given in Python.

`python -m fast3r_ros.ros.parameters` prints config/mapping.yaml.
"""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, replace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterNotDeclaredException,
)
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.parameter import Parameter

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import RENAMED
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.settings import from_flat, parameter_fields, similar_names

TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple: Parameter.Type.STRING_ARRAY,
}


def declared_fields(config: NodeConfig) -> Iterator[tuple[str, Field[Any], Any]]:
    """(dotted name, dataclass field, value) of every setting that is a parameter of the node."""
    return (each for each in parameter_fields(config) if not each[1].metadata["constant"])


def declare(node: Node, defaults: NodeConfig) -> None:
    """Declare every parameter with type, description, range and whether it can change at run time.

    Raises UserError for a value, given at start, that has a wrong type or is out of range.
    """
    for name, item, default in declared_fields(defaults):
        try:
            node.declare_parameter(name, _ros_value(default), _descriptor(name, item, default))
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise UserError(f"parameter {name} cannot be used: {error}") from error


def _ros_value(default: Any) -> Any:
    # an empty list has no type in ROS; a list of one empty string is the usual substitute
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


def read(node: Node, defaults: NodeConfig) -> NodeConfig:
    """The configuration from the node's parameters, with constants from `defaults`.  Raises UserError."""
    values = {name: value for name, _, value in parameter_fields(defaults)}
    values.update({name: node.get_parameter(name).value for name, _, _ in declared_fields(defaults)})
    return config_from_values(values)


def ignored(node: Node, config: NodeConfig) -> list[str]:
    """A sentence for each value given at start without effect, because the parameter does not exist.

    A parameter file may be shared by several nodes: names unlike ours are ignored.
    """
    given = node._parameter_overrides  # rclpy has no public list of them
    return [
        f"ignored: {sentence}"
        for name in sorted(given)
        if not node.has_parameter(name) and (sentence := not_declared(name, config))
    ]


def not_declared(name: str, config: NodeConfig) -> str:
    """Advice for a name that is not a parameter of the node; "" if it is unlike all of ours."""
    present = RENAMED.get(name, name)
    constants = {each: value for each, item, value in parameter_fields(config) if item.metadata["constant"]}
    if present in constants:
        renamed, value = (f", now {present}," if present != name else ""), _yaml_value(constants[present])
        return (
            f"{name}{renamed} is no longer a parameter of the node and stays {value}; "
            "remove it here, or set it in Python (docs/ros.md, Parameters)"
        )
    meant = similar_names(name, [each for each, _, _ in declared_fields(config)])
    return f"{name} is not a parameter of the node; did you mean {' or '.join(meant)}?" if meant else ""


def with_changes(config: NodeConfig, changes: Sequence[Parameter]) -> NodeConfig:
    """The configuration after a change of parameters; unknown names are ignored.  Raises UserError."""
    values = {name: value for name, _, value in parameter_fields(config)}
    values.update({change.name: change.value for change in changes if change.name in values})
    return config_from_values(values)


def config_from_values(values: Mapping[str, Any]) -> NodeConfig:
    """A configuration from dotted names; missing names keep their defaults.  Raises UserError."""
    given = {  # an empty list has no type in ROS, see `_ros_value`
        name: [word for word in value if word] if isinstance(value, (list, tuple)) else value
        for name, value in values.items()
    }
    config = from_flat(NodeConfig, given)
    assert isinstance(config, NodeConfig)
    return config


def rejected(error: UserError) -> SetParametersResult:
    """The answer to a rejected change."""
    return SetParametersResult(successful=False, reason=str(error))


class ConfiguredNode(LifecycleNode):
    """A lifecycle node whose parameters are a NodeConfig; `config` is the present one.

    defaults: of the parameters and constants.  Raises UserError for unusable parameters.
    """

    config: NodeConfig

    def __init__(self, name: str, defaults: NodeConfig) -> None:
        super().__init__(name)
        declare(self, defaults)
        config = read(self, defaults)
        # our frames below the node's namespace, if /tf is shared by all namespaces
        shared = self.resolve_topic_name("/tf") == "/tf"
        self.config = replace(config, frames=config.frames.below(self.get_namespace() if shared else ""))
        for sentence in ignored(self, self.config):
            self.get_logger().warning(sentence)
        self._changing = threading.RLock()  # held while parameters change

    def follow_parameters(self) -> None:
        """Check and use changes of parameters from now on."""
        self.add_on_set_parameters_callback(self._check)
        self.add_post_set_parameters_callback(self._apply)

    def use_config(self, config: NodeConfig) -> None:
        """Use changed parameters."""
        raise NotImplementedError

    def callback_failed(self, error: Exception) -> None:
        """Handle an unexpected exception of a callback."""
        raise NotImplementedError

    def _check(self, changes: Sequence[Parameter]) -> SetParametersResult:
        try:
            with_changes(self.config, changes)
        except UserError as error:
            return rejected(error)
        except Exception as error:
            self.callback_failed(error)
            return rejected(UserError(f"cannot be used: {error!r}"))
        return SetParametersResult(successful=True)

    def _apply(self, changes: Sequence[Parameter]) -> None:
        try:
            # changes come from the executor and, for the window's size, from the mapping thread
            with self._changing:
                self.config = with_changes(self.config, changes)
                self.use_config(self.config)
        except Exception as error:
            self.callback_failed(error)

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """Like rclpy's, for the parameter services; the answer for unknown names contains advice."""
        try:
            return super().set_parameters_atomically(parameter_list)
        except ParameterNotDeclaredException:
            unknown = [each.name for each in parameter_list if not self.has_parameter(each.name)]
            sentences = [not_declared(name, self.config) for name in unknown]
            plain = f"the node has no parameter {', '.join(unknown)}; `ros2 param list` names all"
            return rejected(UserError("; ".join(filter(None, sentences)) or plain))


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
    for name, item, default in declared_fields(NodeConfig()):
        *path, key = name.split(".")
        if path != section:
            lines += ["", *(f"{'  ' * (depth + 2)}{word}:" for depth, word in enumerate(path))]
            section = path
        indent = "  " * (len(path) + 2)
        comment = _comment(item)
        lines += [f"{indent}# {line}" for line in textwrap.wrap(comment, 100 - len(indent))]
        lines.append(f"{indent}{key}: {_yaml_value(default)}")
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
    print(yaml_text(), end="")
