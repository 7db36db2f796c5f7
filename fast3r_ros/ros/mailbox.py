"""The queue between callbacks and the conversion thread."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

QUEUE_LENGTH = (
    2000  # maximum number of waiting small messages (odometry, transforms, calibrations) of one kind
)

Handler = Callable[[Any], None]


class Mailbox:
    """Images wait in one slot per camera, where a newer one replaces an older one.

    Small messages are taken in order of arrival.  Each kind has a queue of bounded length, which drops its
    oldest ones, so that a flood of one kind does not affect the others.
    """

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._images: dict[str, Any] = {}
        self._small: dict[str, deque[tuple[int, Handler, Any]]] = {}
        self._count = 0  # number of small messages so far, for their order
        self._closed = False

    def put_image(self, camera: str, message: Any) -> bool:
        """Leave an image; True when it replaced a waiting one."""
        with self._ready:
            replaced = self._images.pop(camera, None) is not None  # the new one goes to the end of the queue
            self._images[camera] = message
            self._ready.notify()
        return replaced

    def put(self, handler: Handler, message: Any, kind: str = "", most: int = QUEUE_LENGTH) -> bool:
        """Leave a small message with its handler for the conversion thread.

        kind: of the message; at most `most` of them wait.  True when the oldest of its kind was dropped.
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
        """Wake the waiting thread."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def clear(self) -> int:
        """Drop the images and return their number; small messages stay: latched ones come once."""
        with self._ready:
            count = len(self._images)
            self._images.clear()
            return count
