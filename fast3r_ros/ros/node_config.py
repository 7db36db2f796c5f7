"""Every setting of the node that is not the mapper's, once: default, meaning, range.

Read and checked by `fast3r_ros.settings` as the mapper's; `parameters` declares both together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.occupancy import GridConfig
from fast3r_ros.settings import parameter

CAMERA_NAME = re.compile(r"/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")  # as topics are named


@dataclass(frozen=True)
class InputConfig:
    """Images, camera calibration and odometry."""

    transport: str = parameter(
        "auto",
        "Transport of the images: raw (<camera>/image), compressed (<camera>/image/compressed), or "
        "auto: compressed if raw images have no publisher",
        choices=("auto", "raw", "compressed"),
    )
    reliability: str = parameter(
        "auto",
        "Reliability (QoS) of the image subscriptions: auto (reliable where every publisher is), "
        "reliable or best_effort",
        choices=("auto", "reliable", "best_effort"),
    )
    use_camera_info: bool = parameter(
        True, "Use of intrinsics and distortion from camera_info; false: intrinsics are estimated"
    )
    frame_id: str = parameter(
        "",
        "Name of the camera frame in place of the one in the images (one camera only; empty: the "
        "images' own)",
    )
    jump_back: float = parameter(
        1.0,
        "Maximum step back of stamps, in seconds, at which a frame is dropped; a larger one restarts "
        "the window (a looping bag)",
        range=(0.0, 3600.0),
        dynamic=True,
        constant=True,
    )
    timeout: float = parameter(
        3.0,
        "Maximum time without an image, in seconds, before diagnostics warn",
        range=(0.1, 3600.0),
        dynamic=True,
        constant=True,
    )
    odometry: str = parameter(
        "topic",
        "Source of the metric motion: none, topic (nav_msgs/Odometry on `odometry`) or tf (odom -> "
        "base frame)",
        choices=("none", "topic", "tf"),
    )


@dataclass(frozen=True)
class FramesConfig:
    """Names of coordinate frames (REP-105)."""

    map: str = parameter(
        "map",
        "Name of the map frame; a node in namespace /a calls it a/map unless its /tf is remapped, and "
        "map where /map is set",
    )
    odom: str = parameter(
        "odom", "Name of the odometry frame, which is broadcast below the map in metres only"
    )
    base: str = parameter("base_link", "Name of the robot's base frame")
    camera: str = parameter(
        "fast3r_camera",
        "Name of the estimated camera's frame in tf_mode camera; _<name> is added in a rig, a "
        "namespace as for frames.map",
        constant=True,
    )

    def __post_init__(self) -> None:
        names = {item.name: getattr(self, item.name) for item in fields(self)}
        for key, frame in names.items():
            bare = frame.removeprefix("/") if key in ("map", "camera") else frame
            if not bare or bare.startswith("/"):
                raise UserError(f"frames.{key} is {frame!r}; give a frame's name, without a / in front")
        if len(set(names.values())) != len(names):
            raise UserError(f"frames {names} have to differ from each other")

    def below(self, namespace: str) -> FramesConfig:
        """Our own frames below a namespace ("" or "/": none), where they are not absolute (/map) already."""

        def name(frame: str) -> str:
            prefix = namespace.strip("/")
            absolute = frame.startswith("/") or not prefix or frame.startswith(f"{prefix}/")
            return frame.removeprefix("/") if absolute else f"{prefix}/{frame}"

        return replace(self, map=name(self.map), camera=name(self.camera))


@dataclass(frozen=True)
class OutputConfig:
    """Rates and sizes of the published data."""

    map_rate: float = parameter(
        1.0, "Maximum rate of ~/map_cloud, ~/grid and ~/path, in Hz", range=(0.01, 30.0), dynamic=True
    )
    image_size: str = parameter(
        "input",
        "Size of ~/confidence, ~/confidence_color and ~/depth/image_rect: input (the camera image's) "
        "or network",
        choices=("input", "network"),
        dynamic=True,
    )
    max_confidence: float = parameter(
        10.0,
        "Confidence shown as the warmest colour in ~/confidence_color (a number without unit)",
        range=(1.1, 1e6),
        dynamic=True,
        constant=True,
    )
    path_length: int = parameter(
        2000, "Maximum number of poses on ~/path, the newest", range=(1, 1000000), dynamic=True
    )
    status_rate: float = parameter(1.0, "Rate of ~/status, in Hz", range=(0.1, 30.0), dynamic=True)


@dataclass(frozen=True)
class TransformConfig:
    """Broadcast of transforms."""

    rate: float = parameter(
        20.0, "Rate of map -> odom, in Hz", range=(1.0, 200.0), dynamic=True, constant=True
    )
    tolerance: float = parameter(
        0.1,
        "Time by which map -> odom is stamped into the future, in seconds",
        range=(0.0, 10.0),
        dynamic=True,
        constant=True,
    )


@dataclass(frozen=True)
class ViewerConfig:
    """The map in a web browser."""

    port: int = parameter(
        0,
        "Port number of the web viewer, which shows the map as it grows (needs viser); 0: none; a "
        "port in use is replaced by the next free one",
        range=(0, 65535),
    )
    host: str = parameter(
        "127.0.0.1", "Address that the viewer listens on; 0.0.0.0 allows access from the network"
    )
    token: str = parameter(
        "",
        "Token that a browser must give once in the viewer's address (?token=…), 8 to 128 letters, "
        "digits, - and _ (empty: none)",
    )
    allowed_hosts: tuple[str, ...] = parameter(
        (), "Names, in addition to this machine's own, by which browsers may reach the viewer (robot.lan)"
    )


@dataclass(frozen=True)
class NodeConfig:
    """All parameters of the mapping node; `mapper` holds the sections of the mapper."""

    model: str = parameter(
        "demo",
        "Name of the network: demo (ships with the package), a checkpoint folder or a hub name of "
        "Fast3R, or name:checkpoint of another network",
    )
    device: str = parameter(
        "auto", "Device of the network: auto (a GPU if there is one), cpu, cuda, cuda:1 …"
    )
    dtype: str = parameter(
        "auto",
        "Precision of the network: auto (float16 with float32 sums on a GPU, float32 on a CPU), "
        "float32, bfloat16 or float16",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    accelerate: str = parameter(
        "exact",
        "Approximate speed-ups of the network: merge=2 (tokens of far views), stream=4 (three windows "
        "of four are processed only where they are new), linears=int8 or fp8, or two of them with a comma "
        "between; exact: none",
    )
    expected_image: str = parameter(
        "640x480",
        "Size of the cameras' images, WIDTHxHEIGHT in pixels, for which a GPU is warmed up at "
        "configure; windows of other sizes are slower (empty: no warm-up)",
    )
    torch_threads: int = parameter(
        0,
        "Number of CPU threads of the network (0: PyTorch's choice, which OMP_NUM_THREADS sets)",
        range=(0, 1024),
        constant=True,
    )
    autostart: bool = parameter(
        True, "Automatic configuration and activation at start; false waits for a lifecycle manager"
    )
    cameras: tuple[str, ...] = parameter(
        (), "Names of the cameras of a rig: <name>/image, <name>/camera_info; empty: image, camera_info"
    )
    map_directory: str = parameter(
        "~/.ros/fast3r_maps", "Path of the folder that ~/save_map and ~/load_map may use"
    )
    map_path: str = parameter(
        "",
        "Path of a map of ~/save_map that is loaded at configure: absolute, or relative to "
        "map_directory (empty: none)",
    )
    localization: bool = parameter(
        False,
        "Localisation in the map without changing it (~/localize switches this); false: the map is extended",
        dynamic=True,
    )
    tf_mode: str = parameter(
        "auto",
        "Frame that is broadcast below the map frame: auto (the root of the camera's tree on TF: its "
        "own frame, the base or odom), camera (the estimated camera), base (needs base -> camera on "
        "TF), map_to_odom (odom, needs odom -> base -> camera on TF and scale.source other than "
        "none), or none",
        choices=("auto", "base", "camera", "map_to_odom", "none"),
    )
    publish_view_frames: bool = parameter(
        False, "Broadcast of a frame fast3r_view_<i> for every view of the newest window", dynamic=True
    )
    input: InputConfig = field(default_factory=InputConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    tf: TransformConfig = field(default_factory=TransformConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    viewer: ViewerConfig = field(default_factory=ViewerConfig)
    mapper: MapperConfig = field(default_factory=MapperConfig, metadata={"inline": True})

    def __post_init__(self) -> None:
        if self.tf_mode == "map_to_odom" and self.mapper.scale.source == "none":
            raise UserError(
                "tf_mode map_to_odom needs a map in metres, but scale.source is none; set scale.source to "
                "odometry, rig, depth, camera_height, network or fixed"
            )
        if self.grid.min_height >= self.grid.max_height:
            raise UserError(
                f"grid.min_height {self.grid.min_height} is not below grid.max_height {self.grid.max_height}"
            )
        if len(set(self.cameras)) != len(self.cameras):
            raise UserError(f"cameras {list(self.cameras)} has a name twice")
        if self.input.frame_id and len(self.cameras) > 1:
            raise UserError("input.frame_id is for one camera; a rig's frames come from its images")
        for name in self.cameras:
            if not CAMERA_NAME.fullmatch(name):
                raise UserError(
                    f"cameras has {name!r}; a name is letters, digits, _ and /, not a digit first"
                )
