"""The dependencies in package.xml, and the names of its keys on PyPI."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# rosdep's keys, as ros/rosdistro's rosdep/python.yaml resolves them on Ubuntu, and the distributions of PyPI
KEYS = {
    "python3-matplotlib": "matplotlib",
    "python3-numpy": "numpy",
    "python3-opencv": "opencv-python-headless",
    "python3-pil": "pillow",
    "python3-scipy": "scipy",
    "python3-torch": "torch",  # no key: docs/robot.md installs it with pip and skips it
    "python3-tqdm": "tqdm",
    "python3-yaml": "pyyaml",
}


def declared(*kinds: str) -> set[str]:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    return {element.text or "" for element in package if element.tag in kinds}
