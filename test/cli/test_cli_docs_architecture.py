"""docs/architecture.md names files, functions, folders, threads and locks as they are in the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from shown_commands import ROOT

PACKAGE = ROOT / "fast3r_ros"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?"
# `mapping/mapper.py`, `mapping/mapper.py: Mapper.reset`, `mapping/storage.py: write_map, read_map`
REFERENCE = re.compile(rf"(?<![\w/])((?:\w+/)*\w+\.py)(?::\s+({NAME}(?:,\s+{NAME})*))?")
LOCKS = {"Lock", "RLock", "Condition"}


@cache
def names_in(path: Path) -> frozenset[str]:
    """The names a module defines: functions, classes, constants, and its classes' methods and attributes."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names |= set(_defined(node))
        if isinstance(node, ast.ClassDef):
            members = [*node.body, *(each for each in ast.walk(node) if _sets_attribute(each))]
            names |= {f"{node.name}.{name}" for member in members for name in _defined(member)}
    return frozenset(names)


def _defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
        if isinstance(target, ast.Name):
            yield target.id
        elif isinstance(target, ast.Attribute):
            yield target.attr


def _sets_attribute(node: ast.AST) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(each, ast.Attribute) and ast.unparse(each.value) == "self" for each in targets)


def references() -> list[tuple[str, str]]:
    """(file, name in it; empty for the file itself) of everything that the page names, each once."""
    found: dict[tuple[str, str], None] = {}
    for file, names in REFERENCE.findall(PAGE):
        found.update(dict.fromkeys((file, name) for name in re.findall(NAME, names) or [""]))
    return list(found)


def elsewhere(name: str) -> str:
    """The files that define a name, for a failure's message."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if name in names_in(path)]
    return ", ".join(str(path.relative_to(PACKAGE)) for path in files) or "no file"


@pytest.mark.parametrize(("file", "name"), references())
def test_names_on_the_page_exist(file: str, name: str) -> None:
    path = PACKAGE / file
    assert path.is_file(), f"docs/architecture.md: {file} is gone; {name or file} is in {elsewhere(name)}"
    assert not name or name in names_in(path), (
        f"docs/architecture.md: {name} is in {elsewhere(name)}, not {file}"
    )


def test_missing_names_would_be_found() -> None:
    assert "Mapper.process_window" in names_in(PACKAGE / "mapping" / "mapper.py")
    assert "Mapper.process" not in names_in(PACKAGE / "mapping" / "mapper.py")
    assert REFERENCE.findall("`io/ply.py: write_ply,\nread_ply` and io/x.py") == [
        ("io/ply.py", "write_ply,\nread_ply"),
        ("io/x.py", ""),
    ]
    assert len(references()) > 80


def test_the_table_has_every_folder() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", PAGE, re.M)) == folders


def test_the_tables_have_every_lock_and_thread() -> None:
    """All locks and named threads of a running node."""
    locks, threads = set(), set()
    for folder in ("mapping", "ros", "viewer"):
        for path in (PACKAGE / folder).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            threads |= set(re.findall(r'Thread(?:PoolExecutor)?\([^\n]*\bname(?:_prefix)?="(\w+)"', text))
            threads |= set(re.findall(r'thread_name_prefix="(\w+)"', text))
            for kind in (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)):
                for node in filter(_sets_attribute, ast.walk(kind)):
                    value = getattr(node, "value", None)
                    if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in LOCKS:
                        file = path.relative_to(PACKAGE).as_posix()
                        locks |= {(file, f"{kind.name}.{name}") for name in _defined(node)}
    assert len(locks) > 5
    assert not {lock for lock in locks if lock not in references()}
    assert {"fast3r_mapping", "pose_graph"} <= threads
    assert not {name for name in threads if f"`{name}`" not in PAGE}
