"""The package that docs/networks.md shows: its files, and how pip installs them."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "networks.md"


def shown_files() -> dict[str, str]:
    """Name -> content."""
    text = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", text, re.M | re.S))


def install_shown_package(target: Path) -> None:
    """Build the package and install it into a folder, like pip without any other package."""
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation"]
    with tempfile.TemporaryDirectory() as source:
        for name, content in shown_files().items():
            Path(source, name).write_text(content, encoding="utf-8")
        done = subprocess.run([*pip, "--target", target, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
