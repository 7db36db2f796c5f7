from collections.abc import Iterator

import pytest
import torch
from second_device import other_device

__all__ = ["other_device"]  # a fixture


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The tensors of these tests are small: more threads only slow each other down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
