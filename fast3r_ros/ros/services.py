"""The services ~/reset, ~/pause, ~/save_map and ~/load_map.

They run in a callback group of their own and wait for the mapping thread, so that images keep flowing
meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import Cloud
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.ros.map_files import CLOUD_WRITERS, path_for_loading, path_for_saving
from fast3r_ros.ros.mapping_thread import MappingThread
from fast3r_ros.srv import LoadMap, SaveMap


class Services:
    """Creates the services; they answer with success = False and the reason when something cannot be done.

    thread() is the mapping thread, None while the node is not configured.  directory() is the map directory.
    on_pause(paused) and on_new_map() tell the node.
    """

    def __init__(
        self,
        node: Node,
        thread: Callable[[], MappingThread | None],
        directory: Callable[[], str],
        on_pause: Callable[[bool], None],
        on_new_map: Callable[[], None],
    ) -> None:
        self._node, self._thread, self._directory = node, thread, directory
        self._on_pause, self._on_new_map = on_pause, on_new_map
        group = MutuallyExclusiveCallbackGroup()
        for kind, name, action in (
            (Trigger, "reset", self._reset),
            (SetBool, "pause", self._pause),
            (SaveMap, "save_map", self._save),
            (LoadMap, "load_map", self._load),
        ):
            node.create_service(kind, f"~/{name}", self._answering(action), callback_group=group)

    def _answering(self, action: Callable[[Any, Any], str]) -> Callable[[Any, Any], Any]:
        """A service callback: the action's sentence, or why it failed, becomes the answer's message."""

        def answer(request: Any, response: Any) -> Any:
            try:
                response.message = action(request, response)
                response.success = True
            except (UserError, OSError, RuntimeError) as error:
                response.success, response.message = False, str(error)
                self._node.get_logger().error(str(error))
            return response

        return answer

    def _configured(self) -> MappingThread:
        thread = self._thread()
        if thread is None:
            raise UserError("the node is not configured; configure it first")
        return thread

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> str:
        self._configured().request(lambda mapper: mapper.reset()).result()
        self._on_new_map()
        return "the map is empty"

    def _pause(self, request: SetBool.Request, response: SetBool.Response) -> str:
        self._configured()
        self._on_pause(request.data)
        return "paused: images are ignored, the map stays" if request.data else "running"

    def _save(self, request: SaveMap.Request, response: SaveMap.Response) -> str:
        thread = self._configured()
        path = path_for_saving(self._directory(), request.name)
        thread.work_off().result()
        writer = CLOUD_WRITERS.get(path.suffix.lower())
        if writer is None:
            points = thread.request(lambda mapper: _save_own_format(mapper, path)).result()
        else:
            cloud: Cloud = thread.request(_cloud).result()
            writer(path, cloud)
            points = len(cloud.points)
        response.path, response.points = str(path), points
        return f"{points} points written to {path}"

    def _load(self, request: LoadMap.Request, response: LoadMap.Response) -> str:
        thread = self._configured()
        path = path_for_loading(self._directory(), request.name)
        response.keyframes = thread.request(lambda mapper: _load(mapper, path)).result()
        self._on_new_map()
        return f"{response.keyframes} keyframes loaded from {path}"


def _cloud(mapper: Mapper) -> Cloud:
    return mapper.map.cloud()


def _save_own_format(mapper: Mapper, path: Path) -> int:
    mapper.save_map(path)
    return len(mapper.map.cloud().points)


def _load(mapper: Mapper, path: Path) -> int:
    mapper.load_map(path)
    return len(mapper.trajectory())
