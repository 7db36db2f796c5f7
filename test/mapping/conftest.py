import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from second_device import other_device

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not find modules next to the tests

__all__ = ["other_device"]  # a fixture


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The tensors of these tests are small: more threads only slow each other down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
