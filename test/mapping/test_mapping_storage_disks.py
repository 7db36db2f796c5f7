"""Full and failing disks and kills leave the map that was saved before, and nothing else.

FAST3R_KILLS=100 kills as many saves and loads; figures in docs/reliability.md.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_maps import (
    small_map,
)

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.storage import read_map, write_map

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("FAST3R_KILLS", "3"))


def test_a_map_that_would_not_load_is_not_saved(tmp_path: Path) -> None:
    write_map(tmp_path / "map", small_map())
    before = {path.name: path.read_bytes() for path in (tmp_path / "map").iterdir()}
    broken = replace(small_map(), voxel_size=float("nan"))
    with pytest.raises(UserError, match="voxel_size is nan"):
        write_map(tmp_path / "map", broken)
    assert {path.name: path.read_bytes() for path in (tmp_path / "map").iterdir()} == before


def test_a_map_is_not_saved_inside_another(tmp_path: Path) -> None:
    write_map(tmp_path / "a", small_map())
    with pytest.raises(UserError, match="lies inside the map"):
        write_map(tmp_path / "a" / "b" / "c", small_map())
    write_map(tmp_path / "a", small_map())  # it can still be replaced
    assert len(list((tmp_path / "a").iterdir())) == 2


# ---------------------------------------------------------------- disks


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Limits the size of this process's files, like a full disk at any write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_at_any_write_leaves_the_old_map_and_nothing_else(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    write_map(tmp_path / "map", small_map(2))
    before = listing(tmp_path)
    large = small_map(30)
    write_map(tmp_path / "whole", large)
    size = max(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    shutil.rmtree(tmp_path / "whole")
    for most in [0, 1, *np.linspace(2, size - 1, 12).astype(int).tolist()]:
        limited(most)
        for name in ("map", "new/deep"):
            with pytest.raises(UserError, match="cannot write") as caught:
                write_map(tmp_path / name, large)
            assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()
        assert listing(tmp_path) == before, most
    limited(resource.RLIM_INFINITY)
    write_map(tmp_path / "map", large)
    assert len(read_map(tmp_path / "map").keyframes) == 30


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_failing_disk_leaves_the_old_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    write_map(tmp_path / "map", small_map(2))
    before = listing(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(UserError, match="cannot write"):
            write_map(tmp_path / "map", small_map(3))
    assert listing(tmp_path) == before


# ---------------------------------------------------------------- kills

SAVE = """
import sys
from pathlib import Path
from fast3r_ros.mapping.storage import read_map, write_map
target, *sources = map(Path, sys.argv[2:])
saved = [read_map(source) for source in sources]
def rehearse():
    write_map(target.with_name("rehearsed"), saved[0])
def work():
    last = len(read_map(target).keyframes)
    write_map(target, next(each for each in saved if len(each.keyframes) != last))
    read_map(target)
"""


def test_after_a_kill_the_last_saved_map_or_the_next_loads(
    tmp_path: Path, kills: Callable[..., Iterator[bool]]
) -> None:
    sizes = (3, 4)
    for size in sizes:
        write_map(tmp_path / str(size), small_map(size, 48))
    target, rng = tmp_path / "target", random.Random(1)
    write_map(target, small_map(sizes[0], 48))
    shares = [rng.uniform(0.0, 1.0) for _ in range(KILLS)]
    for _ in kills(SAVE, shares, target, *(tmp_path / str(size) for size in sizes)):
        assert len(read_map(target).keyframes) in sizes
    write_map(target, small_map())
    assert len(list(target.iterdir())) == 2
