"""A user's torch.compile finds one graph in each kind of block, and the results stay equal."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from small_model import random_views, small_model

can_compile = shutil.which("g++") and (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not can_compile, reason="torch.compile needs g++ and Python's headers")
@torch.inference_mode()
def test_compiled_blocks_give_the_same_from_one_graph_of_a_kind() -> None:
    import torch._inductor.config  # only now: this takes seconds
    from torch._dynamo.utils import counters

    plain, compiled = small_model(), small_model()
    views = random_views(*[(32, 48)] * 3)
    tokens = [plain.encode(view) for view in views]
    for block in (*compiled.encoder.enc_blocks, *compiled.decoder.dec_blocks):
        block.compile(dynamic=False)
    counters.clear()
    with torch._inductor.config.patch(compile_threads=1):  # one graph is not worth a pool of processes
        features = compiled.fuse(tokens)  # the encoder has the same blocks
    expected = plain.fuse(tokens)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    for ours, theirs in zip(features.hooks, expected.hooks, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for our_map, their_map in zip(compiled.global_head(features), plain.global_head(expected), strict=True):
        torch.testing.assert_close(our_map.points, their_map.points, atol=1e-5, rtol=1e-5)
