"""The imports of launch files, as classes that only record: PyPI has no `launch`.

It shows the requests of a launch file, not their effect; where launch is installed, a test runs it.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

MODULES = {
    "launch": ("LaunchDescription", "LaunchContext"),
    "launch.actions": (
        "DeclareLaunchArgument",
        "EmitEvent",
        "IncludeLaunchDescription",
        "LogInfo",
        "OpaqueFunction",
        "RegisterEventHandler",
        "SetEnvironmentVariable",
    ),
    "launch.event_handlers": ("OnProcessExit",),
    "launch.events": ("Shutdown",),
    "launch.events.process": ("ProcessExited",),
    "launch.launch_description_sources": ("PythonLaunchDescriptionSource",),
    "launch_ros.actions": ("Node",),
}


class Recorded:
    """An action or a description: its class's name and what it was made of."""

    def __init__(self, *values: Any, **named: Any) -> None:
        self.values, self.named = values, named

    def __getitem__(self, name: str) -> Any:
        return self.named[name]


class LaunchConfiguration:
    """The value of a launch argument in a context, which is a dictionary here."""

    def __init__(self, name: str) -> None:
        self.name = name

    def perform(self, context: dict[str, str]) -> str:
        return context[self.name]


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A launch file as a module."""
    for name, classes in MODULES.items():
        module = types.ModuleType(name)
        for each in classes:
            setattr(module, each, type(each, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    substitutions = types.ModuleType("launch.substitutions")
    substitutions.LaunchConfiguration = LaunchConfiguration  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "launch.substitutions", substitutions)
    spec = importlib.util.spec_from_file_location(path.name.replace(".", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
