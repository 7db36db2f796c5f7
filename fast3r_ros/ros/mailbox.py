"""Where callbacks leave messages for the conversion thread."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

QUEUE_LENGTH = 2000  # small messages (odometry, transforms, calibrations) of one kind that may wait

Handler = Callable[[Any], None]


class Mailbox:
    """Images wait in one slot per camera, where a newer one replaces an older one: the newest frames win.

    Small messages are taken in the order in which they came.  Each kind waits in a queue of bounded length,
    from which its oldest are lost: a flood of one kind takes no room from another.
    """

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._images: dict[str, Any] = {}
        self._small: dict[str, deque[tuple[int, Handler, Any]]] = {}
        self._count = 0  # of small messages so far, their order
        self._closed = False

    def put_image(self, camera: str, message: Any) -> bool:
        """Leave an image; True when it replaced one that nobody had taken."""
        with self._ready:
            replaced = self._images.pop(camera, None) is not None  # the new one goes to the end of the line
            self._images[camera] = message
            self._ready.notify()
        return replaced

    def put(self, handler: Handler, message: Any, kind: str = "", most: int = QUEUE_LENGTH) -> bool:
        """Leave a small message with the function that will take it on the conversion thread.

        kind: of the message; `most` of them may wait.  True when the oldest of its kind was lost for it.
        """
        with self._ready:
            queue = self._small.setdefault(kind, deque())
            self._count += 1
            queue.append((self._count, handler, message))
            lost = len(queue) > most
            if lost:
                queue.popleft()
            self._ready.notify()
        return lost

    def take(self, timeout: float) -> tuple[list[tuple[Handler, Any]], tuple[str, Any] | None]:
        """All small messages, and the image that has waited longest, if any; waits at most `timeout` s."""
        with self._ready:
            if not (self._images or self._small or self._closed):
                self._ready.wait(timeout)
            in_order = sorted(itertools.chain(*self._small.values()), key=lambda each: each[0])
            small = [(handler, message) for _, handler, message in in_order]
            self._small.clear()
            camera = next(iter(self._images), None)
            return small, (None if camera is None else (camera, self._images.pop(camera)))

    def close(self) -> None:
        """Wake whoever waits."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def clear(self) -> int:
        """Throw the images away and return their number; a latched transform would not come again."""
        with self._ready:
            count = len(self._images)
            self._images.clear()
            return count
