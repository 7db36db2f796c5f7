import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "geometry"))
sys.path.insert(0, str(Path(__file__).parent))

from second_device import other_device  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors of these tests are small: more threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
