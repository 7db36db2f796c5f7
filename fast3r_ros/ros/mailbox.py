"""Where callbacks leave messages for the conversion thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

QUEUE_LENGTH = 2000  # small messages (odometry, transforms, calibrations) that may wait


class Mailbox:
    """Images wait in one slot per camera, where a newer one replaces an older one: the newest frames win.

    Small messages wait in a queue of bounded length, from which the oldest are lost.
    """

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._images: dict[str, Any] = {}
        self._small: deque[tuple[Callable[[Any], None], Any]] = deque(maxlen=QUEUE_LENGTH)
        self._closed = False

    def put_image(self, camera: str, message: Any) -> bool:
        """Leave an image; True when it replaced one that nobody had taken."""
        with self._ready:
            replaced = self._images.pop(camera, None) is not None  # the new one goes to the end of the line
            self._images[camera] = message
            self._ready.notify()
        return replaced

    def put(self, handler: Callable[[Any], None], message: Any) -> None:
        """Leave a small message with the function that will take it on the conversion thread."""
        with self._ready:
            self._small.append((handler, message))
            self._ready.notify()

    def take(self, timeout: float) -> tuple[list[tuple[Callable[[Any], None], Any]], tuple[str, Any] | None]:
        """All small messages, and the image that has waited longest, if any; waits at most `timeout` s."""
        with self._ready:
            if not (self._images or self._small or self._closed):
                self._ready.wait(timeout)
            small = list(self._small)
            self._small.clear()
            camera = next(iter(self._images), None)
            return small, (None if camera is None else (camera, self._images.pop(camera)))

    def close(self) -> None:
        """Wake whoever waits."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def clear(self) -> int:
        """Throw everything away; returns the number of images among it."""
        with self._ready:
            count = len(self._images)
            self._images.clear()
            self._small.clear()
            return count
