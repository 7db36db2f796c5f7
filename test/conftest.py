"""For all tests: helper modules, a small network, Ctrl-C that reaches programs, examples without a deadline.

A shell starts background jobs with SIGINT ignored, and a program hands that on to those it starts: tests
of Ctrl-C would fail because of where they run.  A signal that is handled here is back at its default in
every program started from here.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fast3r_ros.model import Fast3R

# importlib mode does not find modules next to the tests
sys.path.insert(0, str(Path(__file__).parent / "helpers"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

with suppress(ImportError):  # `colcon test` runs without it
    from hypothesis import settings

    settings.register_profile("any_machine", deadline=None)
    settings.load_profile("any_machine")


@pytest.fixture(scope="session")
def network() -> Fast3R:
    """Random weights, for images of 64x48 pixels; not to be changed."""
    from small_model import small_model

    return small_model()


@pytest.fixture(scope="session")
def model_directory(network: Fast3R, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint folder of `network`."""
    directory = tmp_path_factory.mktemp("model")
    network.save_pretrained(directory)
    return str(directory)
