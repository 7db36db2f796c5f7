"""Write one executable per ROS program listed in setup.cfg.

Usage: write_programs.py SETUP_CFG FOLDER

The list is the entry-point group `fast3r_ros.programs`.  Each program gets the interpreter that runs this
script, as setuptools does it, so that a build made in a virtual environment also runs there.
"""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

PROGRAM = """#!{python}
import sys

try:
    from {module} import {function}

    sys.exit({function}())
except KeyboardInterrupt:  # Ctrl-C while the modules are still loading
    sys.exit(130)
"""


def programs(setup_cfg: Path) -> dict[str, tuple[str, str]]:
    """Read name -> (module, function) from the group `fast3r_ros.programs`."""
    config = configparser.ConfigParser()
    config.read(setup_cfg)
    lines = config["options.entry_points"]["fast3r_ros.programs"].strip().splitlines()
    found = {}
    for line in lines:
        name, target = (part.strip() for part in line.split("="))
        module, function = target.split(":")
        found[name] = (module, function)
    return found


def main(setup_cfg: str, folder: str) -> None:
    """Write the executables into folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, (module, function) in programs(Path(setup_cfg)).items():
        path = Path(folder, name)
        path.write_text(PROGRAM.format(python=sys.executable, module=module, function=function))
        path.chmod(0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
