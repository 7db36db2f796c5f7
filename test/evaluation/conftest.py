"""Held-out walks, a network that knows nothing, and a rendered sample of every dataset format."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not find modules next to the tests

import pytest
import torch
from dataset_samples import WRITERS
from true_answers import TINY

from fast3r_ros.evaluation import held_out
from fast3r_ros.model import Fast3R, Fast3RConfig
from fast3r_ros.synthetic.sequence import SyntheticSequence


@pytest.fixture(scope="session")
def walks() -> list:
    return held_out.short_walks("easy", 2, 6)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    Fast3R(Fast3RConfig.from_dict(TINY, "test")).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, SyntheticSequence]]:
    """A folder of every format and what was written there; not to be changed."""
    roots = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    return {name: (root, WRITERS[name][0](root)) for name, root in roots.items()}
