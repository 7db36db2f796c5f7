"""`pip install .`: the ROS-free core and the `fast3r` command.  Everything is declared in pyproject.toml."""

from setuptools import setup

setup()
