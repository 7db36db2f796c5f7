"""A broadcaster in a robot's tree of frames; what it and others broadcast is stored."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import TransformStamped
from scipy.spatial.transform import Rotation
from tf2_msgs.msg import TFMessage
from tf_tree import Tree

from fast3r_ros.mapping.config import MapperConfig, ScaleConfig
from fast3r_ros.ros.broadcaster import Broadcaster
from fast3r_ros.ros.camera import CameraFacts
from fast3r_ros.ros.node_config import FramesConfig, NodeConfig
from fast3r_ros.ros.pose_messages import stamped_transform
from fast3r_ros.ros.transforms import OwnFrames, OwnLookup

NS = 1_000_000_000
CAMERA = "lens"


def rigid(seed: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = np.random.default_rng(seed).normal(size=3)
    return matrix


class View:
    """The fields of a ViewEstimate used by the broadcaster."""

    def __init__(self, index: int, stamp_ns: int, camera: str = CAMERA) -> None:
        self.keyframe_id, self.stamp_ns, self.camera = index, stamp_ns, camera
        self.map_from_camera = rigid(100 + index)


class World:
    """A broadcaster, and the broadcasts of others; now: seconds, for measuring silence."""

    def __init__(self, mode: str = "auto", source: str = "none", **frames: str) -> None:
        scale = MapperConfig(scale=ScaleConfig(source=source))
        self.now = 1000.0
        self.own = OwnFrames(lambda: self.now)
        self.lookup = OwnLookup()
        self._heard: list[tuple[TFMessage, bool]] = []
        self.told: list[str] = []
        self.facts = {CAMERA: CameraFacts((640, 480), True, "")}
        config = NodeConfig(tf_mode=mode, mapper=scale, frames=FramesConfig(**frames))
        self.broadcaster = Broadcaster(
            self._hear, config, self.own, self.lookup, self.facts, self.told.append
        )

    def _hear(self, transforms: list[TransformStamped]) -> None:
        assert all(self.own.is_own(each) for each in transforms)
        self._heard.append((TFMessage(transforms=transforms), False))

    def others(self, parent: str, child: str, seed: int, stamp_ns: int = 0, static: bool = False) -> None:
        """Receive a transform of another node."""
        transform = stamped_transform(rigid(seed), parent, child, stamp_ns)
        assert not self.own.is_own(transform)
        self.lookup.insert(transform, static)
        self.own.heard(transform, static)
        self._heard.append((TFMessage(transforms=[transform]), static))

    def window(self, *views: View, metres: bool = False) -> dict[int, str]:
        return self.broadcaster.window(views, views, metres)

    def tree(self) -> Tree:
        tree = Tree()
        for message, static in self._heard:
            tree.take(message, static)
        return tree

    def moving(self) -> list[TransformStamped]:
        return [each for message, static in self._heard if not static for each in message.transforms]


def mounted(world: World) -> World:
    """base_link -> mast -> lens, static: a camera of a URDF."""
    world.others("base_link", "mast", 1, static=True)
    world.others("mast", CAMERA, 2, static=True)
    return world


def driving(world: World, *stamps: int) -> World:
    """Also odom -> base_link at some stamps."""
    for index, stamp in enumerate(stamps):
        world.others("odom", "base_link", 10 + index, stamp)
    return world


def views(*seconds: float) -> list[View]:
    return [View(index, round(second * NS)) for index, second in enumerate(seconds)]
