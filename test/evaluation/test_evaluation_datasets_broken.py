"""Datasets with damaged, missing or unknown parts: one line that names the file."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from dataset_samples import (
    WRITERS,
    write_scannet,
)

from fast3r_ros.datasets import open_dataset
from fast3r_ros.errors import UserError

GARBAGE = {"nothing": b"", "words": b"there are no numbers here\n", "bytes": bytes(range(128, 256)) * 4}


@pytest.mark.parametrize("content", GARBAGE)
@pytest.mark.parametrize("name", WRITERS)
def test_every_damaged_file_is_named(name: str, content: str, samples: dict, tmp_path: Path) -> None:
    """One file of each kind is overwritten: a UserError that names it, and nothing else, comes out."""
    root, copy = samples[name][0], tmp_path / "copy"
    kinds: dict[str, Path] = {}
    for path in sorted(root.rglob("*.*")):
        if path.is_file() and not re.search(r"seq-01/|_masked|pair\.txt", str(path)):  # these are not read
            kinds.setdefault(re.sub(r"\d+", "N", str(path.relative_to(root))), path.relative_to(root))
    assert len(kinds) >= 3
    for path in kinds.values():
        shutil.copytree(root, copy, copy_function=os.link)
        (copy / path).unlink()
        (copy / path).write_bytes(GARBAGE[content])
        with pytest.raises(UserError) as problem:
            read_all(name, copy)
        assert path.name in str(problem.value) or "holds no sequence" in str(problem.value)
        shutil.rmtree(copy)


def read_all(name: str, root: Path) -> None:
    for frame in open_dataset(name, root)[0].frames:
        frame.read_image()
        assert frame.read_depth is not None
        frame.read_depth()


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_folder_says_what_was_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sequence"):
        open_dataset(name, tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        open_dataset(name, tmp_path / "missing")


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UserError, match="'kitti'"):
        open_dataset("kitti", Path("."))


def test_broken_files_are_named(tmp_path: Path) -> None:
    write_scannet(tmp_path)
    (tmp_path / "scene0000_00" / "pose" / "10.txt").write_text("1 2 3\n")
    with pytest.raises(UserError, match=r"10\.txt holds 3 numbers"):
        open_dataset("scannet", tmp_path)
    write_scannet(tmp_path)
    (tmp_path / "scene0000_00" / "color" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.jpg"):
        open_dataset("scannet", tmp_path)[0].frames[0].read_image()
