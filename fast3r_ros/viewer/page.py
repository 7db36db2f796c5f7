"""Messages to the browser's page in addition to viser's own: the script `page.js` and its numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import viser
from viser import _messages

from fast3r_ros.viewer.points import STEPS

COLOURINGS = ("picture", "confidence", "height")
_EVERYTHING = 1e30  # higher than any point


@dataclass(frozen=True)
class Style:
    """Selection and appearance of the drawn points.

    min_level, max_slot: of confidence and time, see `points.py`.  max_height: above the points' origin, None
    for no limit.  size: factor of the points' size.  colouring: one of `COLOURINGS`.  levels, heights: the
    ranges of the colours of confidence and of height.
    """

    min_level: int = 0
    max_slot: int = STEPS - 1
    max_height: float | None = None
    size: float = 1.0
    colouring: str = COLOURINGS[0]
    levels: tuple[float, float] = (0.0, STEPS - 1.0)
    heights: tuple[float, float] = (0.0, 1.0)

    def numbers(self) -> list[float]:
        """The numbers in the order of `page.js`."""
        height = _EVERYTHING if self.max_height is None else self.max_height
        low, high = self.heights if self.colouring == "height" else self.levels
        colouring = COLOURINGS.index(self.colouring)
        return [self.min_level, self.max_slot, height, self.size, colouring, low, high, 0.0]


class RunJavascriptMessage(_messages.RunJavascriptMessage):
    """A script for the page; it replaces an earlier one for the same purpose.

    The page identifies a message by its class name, so this class has the name of viser's.
    """

    def redundancy_key(self) -> str:
        """The script's purpose: the text before its first bracket."""
        return f"fast3r {self.source.partition('(')[0]}"


def send_script(server: viser.ViserServer, title: str) -> None:
    """Send the script; must precede all points, because it changes their shader."""
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    _send(server, f"document.title = {json.dumps(title)};\n{script}")


def send_style(server: viser.ViserServer, style: Style) -> None:
    """Send the style, about 100 bytes."""
    numbers = ",".join(f"{number:.7g}" for number in style.numbers())
    _send(server, f"fast3r([{numbers}])")


def _send(server: viser.ViserServer, script: str) -> None:
    server.gui._websock_interface.queue_message(RunJavascriptMessage(script))
