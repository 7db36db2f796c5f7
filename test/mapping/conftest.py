import sys
from pathlib import Path

import pytest
from second_device import other_device

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not find modules next to the tests

__all__ = ["other_device"]  # a fixture


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread: None) -> None:
    """The tensors of these tests are small."""
