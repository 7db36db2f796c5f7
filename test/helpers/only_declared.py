"""Blocks every third-party module except those of given distributions and their dependencies.

As the module sitecustomize on PYTHONPATH, with DECLARED="numpy ros-rclpy ..." in the environment, it does so
in every Python process from its start.  Modules without a distribution (built by colcon) name themselves.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


def allowed_modules(declared: list[str]) -> set[str]:
    """Top-level modules of the distributions of these names and of everything that they require."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wanted, todo = set(), [(canonicalize_name(name), "") for name in declared]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in wanted:
            continue
        wanted.add((name, extra))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(requirement.name), each) for each in ("", *requirement.extras)]
    names = {name for name, _ in wanted}
    found = {
        module
        for module, distributions in metadata.packages_distributions().items()
        if names & {canonicalize_name(each) for each in distributions}
    }
    return found | set(declared)


class Blocked(MetaPathFinder):
    """Rejects modules that are neither in the standard library nor allowed."""

    def __init__(self, allowed: set[str]) -> None:
        self._allowed = allowed | set(sys.stdlib_module_names) | {"sitecustomize", "usercustomize"}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        root = name.partition(".")[0]
        if root not in self._allowed and not root.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {root!r}: package.xml does not declare it", name=root)
        return None


if __name__ == "sitecustomize":
    _allowed = allowed_modules(os.environ["DECLARED"].split())
    for _name in [name for name in sys.modules if name.partition(".")[0] == "packaging"]:
        del sys.modules[_name]  # imported by this file itself
    sys.meta_path.insert(0, Blocked(_allowed))
