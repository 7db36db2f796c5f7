"""The browser's page: the panel's widgets, the script `page.js`, and its messages beyond viser's own."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import viser
from viser import _messages

from fast3r_ros.viewer.point_chunks import STEPS

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


class Controls:
    """The widgets, in the panel's order."""

    def __init__(self, gui: viser.GuiApi) -> None:
        self.count: Any = gui.add_text("points shown", "0", disabled=True)
        self.colouring = gui.add_dropdown(
            "colour by",
            COLOURINGS,
            hint="dark: lowest confidence or lowest height",
        )
        self.hidden = gui.add_slider(
            "hide least confident (%)", min=0, max=95, step=1, initial_value=0, hint="share of points hidden"
        )
        self.height = gui.add_slider(
            "cut above (%)", min=5, max=100, step=1, initial_value=100, hint="share of the height shown"
        )
        self.size = gui.add_slider("point size", min=0.1, max=5.0, step=0.1, initial_value=1.0)
        self.time: Any = gui.add_slider(
            "time (s)", min=0.0, max=0.1, step=0.1, initial_value=0.1, hint="the map as it was at this time"
        )
        self.play: Any = gui.add_button("play", hint="show the map as it grew, in at most half a minute")
        with gui.add_folder("show"):
            self.cameras = gui.add_checkbox("cameras", True, hint="click a camera to look through it")
            self.pictures = gui.add_checkbox("pictures", True)
            self.trajectory = gui.add_checkbox("trajectory", True)
            self.grid = gui.add_checkbox("grid", True)
            self.axes = gui.add_checkbox("axes and scale", True, hint="x red, y green, z blue (up)")
        self.above = gui.add_button("view from above")
        self.whole = gui.add_button("view of the whole map")
        self.back = gui.add_button("back", hint="return to the previous view")
        handles = (
            *(self.filters + self.parts),
            *(self.play, self.above, self.whole, self.back),
        )
        self._widgets: dict[str, Any] = {handle._impl.uuid: handle for handle in handles}

    @property
    def filters(self) -> tuple[Any, ...]:
        """The widgets that change which points are drawn, and how."""
        return (self.colouring, self.hidden, self.height, self.size, self.time)

    @property
    def parts(self) -> tuple[Any, ...]:
        """The boxes that show or hide objects other than points."""
        return (self.cameras, self.pictures, self.trajectory, self.grid, self.axes)

    def last_until(self, seconds: float) -> None:
        """Set the end of the time slider; a slider at its end follows."""
        end = max(math.ceil(seconds * 10) / 10, 0.1)
        at_end = self.time.value >= self.time.max
        self.time.max = end
        if at_end or self.time.value > end:
            self.time.value = end

    def value(self, uuid: str, given: Any) -> Any:
        """A browser's value for a widget, clipped to the widget's range; None if it is invalid."""
        widget = self._widgets.get(uuid)
        if isinstance(widget, viser.GuiSliderHandle):
            if type(given) not in (int, float) or not math.isfinite(given):
                return None
            return min(max(given, widget.min), widget.max)
        if isinstance(widget, viser.GuiCheckboxHandle):
            return given if isinstance(given, bool) else None
        if isinstance(widget, viser.GuiDropdownHandle):
            return given if given in COLOURINGS else None
        return True if isinstance(widget, viser.GuiButtonHandle) and given is True else None
