"""`fast3r reconstruct SOURCE`: a video, images or a bag in; a map, poses and pictures out."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fast3r_ros.cli import interrupt
from fast3r_ros.cli.summary import print_summary
from fast3r_ros.demo_model import reconstruct_caveat
from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import name_of

if TYPE_CHECKING:
    from fast3r_ros.io.pipeline import Mapped, Progress
    from fast3r_ros.io.recorder import Recorder
    from fast3r_ros.io.sources import Source
    from fast3r_ros.mapping.config import MapperConfig
    from fast3r_ros.mapping.data import Frame, WindowNetwork, WindowResult
    from fast3r_ros.mapping.mapper import Mapper
    from fast3r_ros.mapping.one_pass import OnePass
    from fast3r_ros.viewer.web import WebViewer

SHOW_SECONDS = 1.0  # between two updates of the viewer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-command's arguments."""
    parser.add_argument(
        "source", help="video, folder or glob of images, .txt list of images, rosbag2, or the word synthetic"
    )
    parser.epilog = "example: fast3r reconstruct walk.mp4 && fast3r view walk_map"
    parser.add_argument(
        "--output", type=Path, help="folder for the results (default: the source's name with _map, here)"
    )
    parser.add_argument(
        "--model",
        default="demo",
        help="demo, a checkpoint folder or a hub name of Fast3R, or name:checkpoint of another network "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--mode",
        choices=("window", "all"),
        default="window",
        help="window: sliding, any length; all: one forward pass over all views (default: %(default)s)",
    )
    parser.add_argument("--topic", help="image topic of a bag that has several")
    parser.add_argument(
        "--no-camera-info",
        dest="camera_info",
        action="store_false",
        help="ignore a bag's calibration: images are not undistorted, the focal length is estimated",
    )
    parser.add_argument("--rate", type=_rate, help="frames per second to take (default: all)")
    parser.add_argument("--max-views", type=_at_least(1), help="take at most this many frames, evenly spread")
    parser.add_argument(
        "--size", type=_at_least(16), help="longer side of the images at the network, in pixels"
    )
    parser.add_argument("--min-confidence", type=float, help="minimum confidence of a point, 1 or more")
    parser.add_argument("--voxel-size", type=float, help="voxel edge of the map, in its unit")
    parser.add_argument(
        "--scale",
        default="none",
        help="none (map units), odometry (of a bag), network (where its points are in metres), "
        "camera_height=METRES or fixed=METRES_PER_UNIT",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="precision of the network; auto is float16 with float32 sums on a GPU, float32 on a CPU",
    )
    parser.add_argument(
        "--parallel",
        choices=("none", "tensor", "sequence"),
        default="none",
        help="with --mode all, started by torchrun: split the network over the processes, by attention heads "
        "or by views (default: %(default)s)",
    )
    parser.add_argument(
        "--accelerate",
        default="exact",
        metavar="WHAT",
        help="approximate: merge=2 (tokens of far views), stream=4 (in three of four windows "
        "only new views are processed; --mode window), linears=int8 or fp8, or two with a comma",
    )
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="any setting of the mapper"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep a complete result; start over after a partial one"
    )
    parser.add_argument("--rerun", type=Path, metavar="FILE.rrd", help="also write a recording for rerun")
    parser.add_argument(
        "--colmap-images",
        choices=("original", "network"),
        default="original",
        help="images of sparse/0 and transforms.json: the originals, which are put into images/ by "
        "their names, or the images at network size (default: %(default)s)",
    )
    parser.add_argument("--mesh", action="store_true", help="also write map_mesh.ply and .glb (needs Open3D)")
    parser.add_argument("--viewer", action="store_true", help="show the growing map in the browser")
    parser.add_argument(
        "--viewer-host",
        default="127.0.0.1",
        help="address of --viewer; 0.0.0.0 lets others on the network look (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct; the exit status is 0, 1 for an empty map, or 130 when Ctrl-C left a partial result."""
    if arguments.output is None:
        arguments.output = default_output(arguments.source)
    if arguments.parallel == "none":
        return _reconstruct(arguments)
    if arguments.mode != "all":
        raise UserError(f"--parallel {arguments.parallel} needs --mode all: windows are for one process")
    from fast3r_ros.cli.interrupt import run_on_ranks

    return run_on_ranks(arguments, _reconstruct)


def default_output(source: str) -> Path:
    """The default results folder of a source: `walk.mp4` -> `walk_map`, a glob by its folder.

    In the working directory, or next to the source when that is the working directory, never inside it.
    """
    path = Path(source.partition(":")[0] if source.startswith("synthetic:") else source).expanduser()
    while path.name and (set(path.name) & set("*?[") or path.name == ".."):
        path = path.parent
    named = path if path.name else path.resolve()
    stem = named.name if named.is_dir() else named.stem
    result = Path(f"{stem or 'images'}_map")
    inside = Path(source).is_dir() and Path.cwd().is_relative_to(Path(source).resolve())
    return Path(source).resolve().parent / result if inside else result


def _reconstruct(arguments: argparse.Namespace, first: bool = True) -> int:
    """`run` on this process; with several processes only the first writes anything."""
    from fast3r_ros.io.sources import choose_indices, open_source

    if arguments.rerun is not None:
        from fast3r_ros.io.rerun_file import require_rerun

        require_rerun()
    if arguments.mesh:
        from fast3r_ros.io.mesh import require_open3d

        require_open3d()
    if arguments.resume and _is_complete(arguments.output):
        return 0
    source = open_source(arguments.source, topic=arguments.topic, camera_info=arguments.camera_info)
    indices = choose_indices(
        len(source),
        source.rate_hz,
        rate_hz=arguments.rate,
        max_views=arguments.max_views,
        stamps_ns=source.stamps_ns,
    )
    config = mapper_config(arguments, len(indices))
    caveat = reconstruct_caveat(arguments.model, source.synthetic, source.name, arguments.output)
    if caveat and first:
        print(caveat, flush=True)
    odometry = _odometry(source) if config.scale.source == "odometry" else None
    # imported late, so that a usage error is reported without waiting for PyTorch
    from fast3r_ros.io.pipeline import Progress, begin_results, noted, with_odometry, write_results
    from fast3r_ros.io.recorder import Recorder
    from fast3r_ros.io.run_report import require_own_recording

    progress = Progress()
    mapper = _mapper(arguments.mode, _load_network(arguments, progress.timings), config)
    recorder = Recorder(arguments.output)
    frames = noted(source.frames(indices), source, recorder)
    if odometry is not None:
        frames = with_odometry(frames, odometry, mapper)
    if not first:
        return _follow(frames, mapper)
    if arguments.rerun is not None:
        require_own_recording(arguments.rerun, arguments.output)
    begin_results(arguments.output, source.paths)
    settings = {**vars(arguments), "parameters": config.to_flat()}
    show = _Show(arguments, len(indices), mapper, recorder)
    progress.stopped = "failed"
    try:
        _map(frames, mapper, recorder, progress, show)
        progress.stopped = ""
    except KeyboardInterrupt:
        progress.stopped = "interrupted"
    except UserError as error:
        progress.stopped = str(error)
        raise
    finally:
        show.close()
        with interrupt.held():  # one Ctrl-C must not lose hours of work
            report = write_results(
                arguments.output,
                source,
                mapper,
                recorder,
                progress,
                settings,
                arguments.rerun,
                colmap_images=arguments.colmap_images,
                mesh=arguments.mesh,
            )
    print_summary(arguments.output, report)
    if progress.stopped:
        return interrupt.STATUS
    return 0 if report["map_points"] else 1


def _mapper(mode: str, network: WindowNetwork, config: MapperConfig) -> Mapper | OnePass:
    """The mapper of a mode: a sliding window, or one pass over everything."""
    from fast3r_ros.mapping.mapper import Mapper
    from fast3r_ros.mapping.one_pass import OnePass

    return OnePass(network, config) if mode == "all" else Mapper(network, config)


def _map(
    frames: Iterator[Frame], mapper: Mapper | OnePass, recorder: Recorder, progress: Progress, show: _Show
) -> None:
    from fast3r_ros.io.pipeline import map_at_once, map_source
    from fast3r_ros.mapping.one_pass import OnePass

    if isinstance(mapper, OnePass):
        map_at_once(frames, mapper, recorder, progress, show)
    else:
        map_source(frames, mapper, recorder, progress, show)


def _follow(frames: Iterator[Frame], mapper: Mapper | OnePass) -> int:
    """Take part in the first process's passes; the first process writes the results."""
    for frame in frames:
        mapper.add_frame(frame)
    for _ in cast("OnePass", mapper).process():
        pass
    return 0


def mapper_config(arguments: argparse.Namespace, views: int) -> MapperConfig:
    """The mapper's parameters for the arguments; `views` is the number of frames.

    Raises UserError for a parameter that does not exist or a value out of range.
    """
    from fast3r_ros.io.run_config import run_config

    values: dict[str, Any] = {}
    values.update(_scale(arguments.scale))
    if arguments.min_confidence is not None:
        values["points.min_confidence"] = arguments.min_confidence
    if arguments.voxel_size is not None:
        values["map.voxel_size"] = arguments.voxel_size
    for assignment in arguments.set:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment} is not an assignment; give --set window.size=8")
        values[name] = _value(text)
    return run_config(values, arguments.mode, views)


def _scale(text: str) -> dict[str, Any]:
    """Mapper parameters of `--scale`."""
    name, _, value = text.partition("=")
    parameters = {"camera_height": "scale.camera_height", "fixed": "scale.metres_per_unit"}
    if text in ("none", "odometry", "network"):
        return {"scale.source": text}
    if name not in parameters or not value:
        raise UserError(
            f"--scale {text} is unknown; give none, odometry, network, camera_height=1.2 or fixed=2.5"
        )
    return {"scale.source": name, parameters[name]: _value(value)}


def _odometry(source: Source) -> Iterator[tuple[int, Any]]:
    """The poses of a bag's odometry topic.  Raises UserError when the source has none."""
    from fast3r_ros.io.sources.rosbag import RosBag

    if not isinstance(source, RosBag):
        raise UserError(f"--scale odometry needs a bag with nav_msgs/Odometry, {source.name} is none")
    poses = source.odometry()
    return chain([next(poses)], poses)  # reports a missing topic now


def _value(text: str) -> Any:
    """A parameter's value as written on a command line: a number, true, false or a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _rate(text: str) -> float:
    """Frames per second as written on a command line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number greater than 0")
    return value


def _at_least(least: int) -> Callable[[str], int]:
    """A parser for a whole number of at least `least`."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of {least} or more")
        return int(text)

    return read


def _load_network(arguments: argparse.Namespace, timings: dict[str, float]) -> WindowNetwork:
    """The network on its device; raises UserError when model or device cannot be used."""
    from fast3r_ros.model.speed.acceleration import Acceleration
    from fast3r_ros.networks import NetworkOptions, load_network

    acceleration = Acceleration.parse(arguments.accelerate)
    if acceleration.stream > 1 and arguments.mode == "all":
        raise UserError(f"--accelerate {acceleration}: stream is for --mode window; one pass has no windows")
    started = time.perf_counter()
    network = load_network(
        arguments.model,
        NetworkOptions(
            arguments.device, arguments.dtype, arguments.size, arguments.accelerate, arguments.parallel
        ),
    )
    timings["load"] += time.perf_counter() - started
    return network


def _is_complete(output: Path) -> bool:
    """For --resume: prints what the folder holds; True when nothing is left to do."""
    try:
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        complete, frames = bool(report["complete"]), int(report["frames"])
    except (OSError, ValueError, KeyError, TypeError):
        print(f"nothing to resume in {output}: starting from the first frame", flush=True)
        return False
    if complete:
        print(f"{output} holds a complete result of {frames} frames: nothing to do", flush=True)
        return True
    print(
        f"{output} holds a partial result of {frames} frames; the state between windows is not saved, "
        "so the run starts over from the first frame",
        flush=True,
    )
    return False


class _Show:
    """The progress bar and, if asked for, the viewer."""

    def __init__(self, arguments: argparse.Namespace, total: int, mapper: Mapped, recorder: Recorder):
        from tqdm import tqdm

        self._mapper, self._recorder = mapper, recorder
        self._bar = tqdm(total=total, unit="frame", disable=None)
        self._viewer: WebViewer | None = None
        self._shown_s = -SHOW_SECONDS  # time of the last viewer update, monotonic clock
        if arguments.viewer:
            from fast3r_ros.viewer.web import WebViewer

            self._viewer = WebViewer(arguments.viewer_host)
            self._bar.write(f"viewer: {self._viewer.address}")
            if self._viewer.open_to_others:
                self._bar.write("anyone who can reach this machine can see the map")

    def __call__(self, result: WindowResult | None) -> None:
        """After every frame; result is its window's, None when no window was processed."""
        if self._bar.n < self._bar.total:
            self._bar.update()
        if result is None:
            return
        status = self._mapper.status()
        self._bar.set_postfix(windows=status.windows, points=status.map_points)
        if self._viewer is not None and time.monotonic() - self._shown_s > SHOW_SECONDS:
            self._shown_s = time.monotonic()
            keyframes = self._mapper.map.part()
            images = {name_of(i): k.image for i, k in keyframes.items() if k.image is not None}
            unit = "m" if self._mapper.map.metres else "map units"
            self._viewer.show(self._mapper.map.cloud(), self._recorder.cameras(keyframes), images, unit)

    def close(self) -> None:
        """End the bar and the viewer."""
        self._bar.close()
        if self._viewer is not None:
            self._viewer.stop()
