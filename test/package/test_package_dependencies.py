"""The lists of dependencies (package.xml, pyproject.toml) against what the code imports, and licences."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

import pytest
from declarations import KEYS, declared
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ROOT / "fast3r_ros"
MODULES = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "OpenEXR": "openexr",
    "pillow_heif": "pillow-heif",
    "rerun": "rerun-sdk",
}
# Packages of one optional feature, which names them in one line if missing.
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
OPTIONAL |= {"depth-anything-3", "addict", "einops", "omegaconf", "mapanything", "vggt"}
THROUGH_TORCH = {"flash-attn", "tensorboard"}  # torch or a table of names imports these for us
THROUGH_DA3 = {"addict", "einops", "omegaconf"}  # the networks of depth-anything-3 import these
NOT_IN_EXTRAS = {"depth-anything-3", "mapanything", "vggt"}  # without its dependencies, or not on PyPI
# Packages that are not installed for the tests or do not state their licence: that of the project page.
ELSEWHERE = {
    "open3d": "MIT",
    "openexr": "BSD-3-Clause",
    "pillow-heif": "BSD-3-Clause",  # an extra; its wheels carry libheif, LGPL, as a library of its own
    "pycolmap": "BSD-3-Clause",
    "flash-attn": "BSD-3-Clause",
    "depth-anything-3": "Apache-2.0",
    "mapanything": "Apache-2.0",
    "addict": "MIT",
    "einops": "MIT",
    "omegaconf": "BSD-3-Clause",
    "deepspeed": "Apache-2.0",
    "rerun-sdk": "MIT OR Apache-2.0",
}
# Networks whose own terms a user accepts by installing them; they are in no requirements of ours, and nothing
# else imports them.  vggt: CC BY-NC 4.0, since 29 July 2025 the VGGT License (commercial, no military use).
OWN_TERMS = {"vggt": "fast3r_ros/networks/vggt.py"}
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
    return {canonicalize_name(name) for name in names | THROUGH_TORCH | THROUGH_DA3}


def names_of(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_pyproject_names_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = names_of(project["dependencies"])
    extras = project["optional-dependencies"]
    more = set().union(*(names_of(lines) for extra, lines in extras.items() if extra != "ros"))
    # pycolmap: a program to compare with
    assert core | more | {"pycolmap"} | NOT_IN_EXTRAS == distributions()


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


def test_package_xml_names_a_contact() -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    urls = {element.get("type"): element.text for element in package.findall("url")}
    assert urls.keys() == {"website", "repository", "bugtracker"}
    (maintainer,) = package.findall("maintainer")
    assert re.fullmatch(r"[^@\s]+@[^@\s]+\.[a-z]{2,}", maintainer.get("email", ""))


def test_what_has_terms_of_its_own_is_installed_by_the_user_alone() -> None:
    files = [
        *(ROOT / "requirements").iterdir(),
        ROOT / "pyproject.toml",
        ROOT / "package.xml",
        ROOT / "Makefile",
    ]
    for name, adapter in OWN_TERMS.items():
        assert not [path for path in files if re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))]
        importing = re.compile(rf"^\s*(from|import) {name}\b", re.MULTILINE)
        users = [path for path in PRODUCT.rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))]
        assert users == [ROOT / adapter]


@pytest.mark.parametrize("name", sorted(distributions() - OWN_TERMS.keys()))
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
