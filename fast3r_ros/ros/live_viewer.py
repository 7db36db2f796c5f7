"""The map in a browser while it grows: the web viewer behind `viewer.port` and `viewer.host`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import CameraRecord, name_of
from fast3r_ros.mapping.data import Cloud, Keyframe, UInt8
from fast3r_ros.ros.node_config import ViewerConfig

if TYPE_CHECKING:
    from fast3r_ros.viewer.web import WebViewer


class LiveViewer:
    """Serves the map if a port is set; logs one line if that is impossible."""

    def __init__(self, config: ViewerConfig, logger: Any) -> None:
        self._viewer: WebViewer | None = None
        if config.port == 0:
            return
        try:
            self._viewer = _open(config)
        except (UserError, OSError, ImportError) as error:  # also for a damaged viser
            logger.error(f"viewer.port {config.port}: no viewer ({error}); the node continues without it")
        else:
            logger.info(f"the map is shown at {self._viewer.address}")
            if self._viewer.open_to_others:
                logger.warning(
                    f"viewer.host {config.host}: anyone who can reach this machine can see the map; "
                    "set viewer.token to require a token"
                )

    @property
    def active(self) -> bool:
        """Whether the viewer is running."""
        return self._viewer is not None

    def show(self, cloud: Cloud, keyframes: Mapping[int, Keyframe], metres: bool) -> None:
        """Replace what is shown: the map's cloud and its keyframes, except those without an image."""
        if self._viewer is not None:
            images = {name_of(each.id): each.image for each in keyframes.values() if each.image is not None}
            in_order = sorted(keyframes.values(), key=lambda keyframe: keyframe.stamp_ns)
            records = [_record(each, each.image) for each in in_order if each.image is not None]
            self._viewer.show(cloud, records, images, "m" if metres else "map units")

    def stop(self) -> None:
        """Close the port."""
        if self._viewer is not None:
            self._viewer.stop()
            self._viewer = None


def _open(config: ViewerConfig) -> WebViewer:
    """Raises UserError without viser and for an address that is not this machine's."""
    from fast3r_ros.viewer.web import WebViewer

    return WebViewer(config.host, config.port, config.token, config.allowed_hosts)


def _record(keyframe: Keyframe, image: UInt8) -> CameraRecord:
    height, width = image.shape[:2]
    return CameraRecord(
        name=name_of(keyframe.id),
        stamp_ns=keyframe.stamp_ns,
        camera=keyframe.camera,
        width=width,
        height=height,
        intrinsics=keyframe.intrinsics,
        map_from_camera=keyframe.map_from_camera,
    )
