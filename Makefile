# The two commands:
#     make demo [SOURCE=video|folder|bag] [MODEL=demo|folder|hub name] [DISTRO=kilted|jazzy]
#     make test [DISTRO=kilted|jazzy]
# Both make what they need first: .venv, pinned dependencies, the colcon build in install/.  A sourced ROS 2
# distribution (Jazzy or newer) is used instead of the wheels from PyPI.  PYTHON chooses the interpreter.
#
# To run anything else in the same environment:
#     make setup && . scripts/ros_env.sh && python -m fast3r_ros.ros.mapping_node
# Sources are linked into install/, so edits count at once; new files and messages need `make setup` again.

SHELL := /bin/bash
PYTHON ?= python3
DISTRO ?=
SOURCE ?=
MODEL ?= demo
OUTPUT ?= demo_output

setup_for = $(PYTHON) scripts/setup_environment.py --distro '$(DISTRO)' --for $(1)

.PHONY: demo test setup clean

setup:
	@$(call setup_for,test)

clean:
	rm -rf build build-* install install-* log log-* $(OUTPUT)
