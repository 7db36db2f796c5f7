"""A network small enough for property tests, and images for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fast3r_ros.model import Fast3R

# importlib mode does not find a module beside the tests
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def small_network() -> Fast3R:
    from small_model import small_model

    return small_model()
