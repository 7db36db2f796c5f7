"""The viewer's panel: sliders, boxes and buttons, and the values that a browser may set."""

from __future__ import annotations

import math
from typing import Any

import viser

from fast3r_ros.viewer.page import COLOURINGS


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
