"""The package's metadata in several places must agree."""

import ast
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from scipy.sparse.csgraph import connected_components

import fast3r_ros

ROOT = Path(__file__).resolve().parents[2]
UNPINNED = {"numpy": "build.txt"}  # pinned in core.txt


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def entry_points(group):
    return PROJECT["scripts"] if group == "console_scripts" else PROJECT["entry-points"][group]


def requirements(name):
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def defined_functions(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.is_file():
        path = ROOT / module.replace(".", "/") / "__init__.py"
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_versions_agree():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.findtext("version") == fast3r_ros.__version__
    assert package.get("format") == "3"


@pytest.mark.parametrize("group", ["console_scripts", "fast3r_ros.programs"])
def test_every_program_exists(group):
    for name, target in entry_points(group).items():
        module, function = target.split(":")
        assert function in defined_functions(module), f"{name} = {target}"


def test_programs_are_written_from_the_one_list(tmp_path):
    script = ROOT / "scripts" / "write_programs.py"
    subprocess.run([sys.executable, script, ROOT / "pyproject.toml", tmp_path], check=True)
    assert {path.name for path in tmp_path.iterdir()} == set(entry_points("fast3r_ros.programs"))
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o111 == 0o111
        assert path.read_text().startswith(f"#!{sys.executable}\n")


def test_every_requirement_is_pinned():
    for path in (ROOT / "requirements").glob("*.txt"):
        for requirement in requirements(path.stem):
            pinned = [specifier.operator for specifier in requirement.specifier] == ["=="]
            assert pinned or UNPINNED.get(requirement.name) == path.name, f"{path.name}: {requirement}"


@pytest.mark.parametrize(
    ("extra", "file"),
    [(None, "core"), ("train", "train"), ("viewer", "viewer"), ("da3", "da3"), ("ros", "ros-jazzy")],
)
def test_pins_lie_in_the_ranges_that_pip_install_allows(extra, file):
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    ranges = {Requirement(line).name.lower(): Requirement(line).specifier for line in lines}
    pins = {}
    for requirement in requirements(file):
        pins.setdefault(requirement.name.lower(), []).append(next(iter(requirement.specifier)).version)
    assert ranges.keys() <= pins.keys()
    if extra == "da3":  # da3.txt also holds what is installed without its dependencies, and one of these
        assert pins.keys() - ranges.keys() == {"depth-anything-3", "antlr4-python3-runtime"}
    elif extra != "ros":  # ros-jazzy.txt also holds what builds messages
        assert ranges.keys() == pins.keys()
    for name, allowed in ranges.items():
        assert all(allowed.contains(version) for version in pins[name]), name


CORE = [
    *(
        "model",
        "geometry",
        "mapping",
        "synthetic",
        "io",
        "datasets",
        "metrics",
        "training",
        "evaluation",
        "cli",
        "networks",
    ),
]


@pytest.mark.parametrize("folder", CORE)
def test_the_core_imports_no_ros(folder):
    forbidden = re.compile(r"rclpy|.*_msgs$|fast3r_ros\.(ros|msg|srv)\b")
    for path in (ROOT / "fast3r_ros" / folder).rglob("*.py"):
        for node in ast.parse(path.read_text()).body:  # a benchmark of the node may import it when asked for
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [m for m in modules if forbidden.match(m)], path


def test_folders_import_each_other_in_one_direction():
    graph = {}
    for path in (ROOT / "fast3r_ros").glob("*/**/*.py"):
        folder = path.relative_to(ROOT / "fast3r_ros").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fast3r_ros."):
                other = node.module.split(".")[1]
                if other != folder and (ROOT / "fast3r_ros" / other).is_dir():
                    graph.setdefault(folder, set()).add(other)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_modules_import_each_other_in_one_direction():
    """Also inside a folder, in functions and for type checking."""
    files = {}
    for path in (ROOT / "fast3r_ros").rglob("*.py"):
        files[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    names = sorted(files)
    graph = np.zeros((len(names), len(names)), bool)
    for row, name in enumerate(names):
        for node in ast.walk(ast.parse(files[name].read_text())):
            if isinstance(node, ast.ImportFrom):
                modules = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                modules -= {node.module} if modules & files.keys() - {node.module} else set()
                graph[row, [names.index(module) for module in modules & files.keys() - {name}]] = True
    _, groups = connected_components(graph, connection="strong")
    circles = [{names[i].rpartition(".")[2] for i in np.flatnonzero(groups == g)} for g in set(groups)]
    assert [circle for circle in circles if len(circle) > 1] == []


def test_no_two_modules_have_one_name():
    """A command's module has the name of the command."""
    package = ROOT / "fast3r_ros"
    paths = [path for path in package.rglob("*.py") if path.parent.name != "cli"]
    names = Counter(path.parent.name if path.stem == "__init__" else path.stem for path in paths)
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_public_classes_have_one_name():
    places = defaultdict(list)
    for path in (ROOT / "fast3r_ros").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_pins_install_on_the_python_of_debian_12():
    """3.11.2, older than some packages want; of what is installed here in the version of the pin."""
    for path in (ROOT / "requirements").glob("*.txt"):
        for requirement in requirements(path.stem):
            try:
                about = metadata.metadata(requirement.name)
            except metadata.PackageNotFoundError:
                continue
            wanted = about.get("Requires-Python", "")
            if wanted and about["Version"] in requirement.specifier:
                assert SpecifierSet(wanted).contains("3.11.2"), (
                    f"{path.name}: {requirement} needs Python {wanted}"
                )
