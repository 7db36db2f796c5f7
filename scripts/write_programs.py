"""Write one executable per ROS program listed in pyproject.toml.

Usage: write_programs.py PYPROJECT FOLDER

The list is the entry-point group `fast3r_ros.programs`.  Each program gets the interpreter that runs this
script, like with setuptools, so that a build made in a virtual environment also runs there.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

PROGRAM = """#!{python}
import sys

try:
    from {module} import {function}

    sys.exit({function}())
except KeyboardInterrupt:  # Ctrl-C while the modules are still loading
    sys.exit(130)
"""


def programs(pyproject: Path) -> dict[str, tuple[str, str]]:
    """Read name -> (module, function) from the group `fast3r_ros.programs`."""
    targets = tomllib.loads(pyproject.read_text())["project"]["entry-points"]["fast3r_ros.programs"]
    found = {}
    for name, target in targets.items():
        module, function = target.split(":")
        found[name] = (module, function)
    return found


def main(pyproject: str, folder: str) -> None:
    """Write the executables into folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, (module, function) in programs(Path(pyproject)).items():
        path = Path(folder, name)
        path.write_text(PROGRAM.format(python=sys.executable, module=module, function=function))
        path.chmod(0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
