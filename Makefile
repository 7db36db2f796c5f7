# The two commands:
#     make demo [SOURCE=video|folder|bag] [MODEL=demo|folder|hub name|da3:small] [DISTRO=jazzy|kilted]
#     make test [DISTRO=jazzy|kilted] [PYTEST="-k name"]
# and `make check`, which skips the slow tests.
# Both first make what they need: .venv, pinned dependencies, the colcon build in install/.  A sourced ROS 2
# distribution (Jazzy or newer) is used instead of the wheels from PyPI.  PYTHON chooses the interpreter.
# Without an NVIDIA driver PyTorch is installed without CUDA; TORCH_INDEX names another index of its builds.
#
# To run anything else in the same environment:
#     make setup && . scripts/ros_env.sh && python -m fast3r_ros.ros.mapping_node
# Sources are linked into install/, so edits take effect at once; new files and messages need `make setup` again.

SHELL := /bin/bash
PYTHON ?= python3
DISTRO ?=
SOURCE ?= synthetic
MODEL ?= demo
OUTPUT ?= demo_output
PYTEST ?=
TORCH_INDEX ?=
export PYTHON DISTRO TORCH_INDEX
export HOME := $(or $(HOME),$(CURDIR)/build/home)# a service may have none; ROS and pip write there
unexport PYTHONDONTWRITEBYTECODE# every start would compile PyTorch again

SETUP := scripts/run_stoppable.sh $(PYTHON) scripts/setup_environment.py
IN_ROS := scripts/run_stoppable.sh scripts/run_in_ros.sh

.PHONY: demo test check setup clean

demo:
	@$(SETUP) --for demo --distro '$(DISTRO)' --model '$(MODEL)'
	@$(IN_ROS) python -m fast3r_ros.ros.demo --source '$(SOURCE)' --model '$(MODEL)' --output '$(OUTPUT)'

test:
	@scripts/run_tests.sh all $(PYTEST)

check:
	@scripts/run_tests.sh fast $(PYTEST)

setup:
	@$(SETUP) --for test --distro '$(DISTRO)'

clean:
	rm -rf build build-* install install-* log log-* $(OUTPUT)
