"""The commands and code in the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "not run by our tests"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
# `…` in a sentence that is a command with arguments, not the name of a program or a command of others
_INLINE = re.compile(r"`((?:fast3r|python -m fast3r_ros|torchrun|make|ros2 launch fast3r_ros) [^`]*)`")
_NAMES = re.compile(r"(?:fast3r|python -m fast3r_ros) \w+$")  # of a sub-command


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The fenced blocks of a page in one of the languages, or all of them."""
    for language, content in _FENCE.findall(page.read_text(encoding="utf-8")):
        if not languages or language in languages:
            yield content


def languages() -> set[str]:
    """Of all fenced blocks."""
    return {name for page in PAGES for name, _ in _FENCE.findall(page.read_text(encoding="utf-8"))}


def commands() -> list[str]:
    """Every command of the pages, in their order, each once: lines of blocks, then those in sentences."""
    found: dict[str, None] = {}
    for page in PAGES:
        for block in blocks(page, "console", "bash"):
            lines = (line.removeprefix("$ ").split(" #")[0].strip() for line in block.splitlines())
            found.update(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for command in _INLINE.findall(prose):
            whole = " ".join(re.sub(r"\[.*\]", "", command).split())
            if not _NAMES.match(whole):
                found[whole] = None
    return list(found)


def of_fast3r(command: str) -> str | None:
    """The arguments of a `fast3r …` or `python -m fast3r_ros …`; None for another command."""
    match = re.match(r"(?:fast3r|python -m fast3r_ros) (.*)", command)
    return match[1] if match else None


def text_without_a_word_on_tests() -> list[str]:
    """Blocks of the language `text` without a remark before them that tests do not run them."""
    wrong = []
    for page in PAGES:
        before, *others = re.split(r"^```text\n", page.read_text(encoding="utf-8"), flags=re.M)
        for content in others:
            paragraph = before.rstrip().split("\n\n")[-1]
            if NOT_RUN not in " ".join(paragraph.split()):
                wrong.append(f"{page.name}: {content.split('```')[0]}")
            before = content
    return wrong
