"""`fast3r evaluate`: a model's accuracy on scenes with ground truth, as tables and pictures."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fast3r_ros.errors import UserError

if TYPE_CHECKING:
    from fast3r_ros.datasets import PosedSequence
    from fast3r_ros.evaluation.runner import Row
    from fast3r_ros.mapping.data import WindowNetwork

TABLES = ("pose", "reconstruction", "depth", "trajectory", "mapper")
SYNTHETIC = "synthetic"
IMAGE_SIZE = 512  # longer side in pixels, for a network without a size of its own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-command's arguments."""
    parser.add_argument(
        "--dataset",
        default=SYNTHETIC,
        help="synthetic, or a format of recorded sets: 7scenes, tum, colmap … (default: %(default)s)",
    )
    parser.add_argument("--data-root", type=Path, help="folder of the dataset; not needed for synthetic")
    parser.add_argument("--split", default="full", choices=("full", "easy"), help="of the synthetic scenes")
    parser.add_argument(
        "--scenes", type=int, help="maximum number of scenes (default: 50 synthetic, else all)"
    )
    parser.add_argument(
        "--model",
        action="append",
        help="demo, a checkpoint folder or a hub name of Fast3R, or name:checkpoint of another network; "
        "several are compared: --model a --model b (default: demo)",
    )
    parser.add_argument("--output", type=Path, help="folder for results.json, results.md and pictures")
    parser.add_argument(
        "--tables", nargs="+", choices=TABLES, default=list(TABLES), help="what to measure (default: all)"
    )
    parser.add_argument("--views", nargs="+", type=int, default=[8], help="views per pass; several: ablation")
    parser.add_argument(
        "--heads",
        nargs="+",
        choices=("local", "global"),
        default=["local"],
        help="local: local points, fitted to the global points; global: global points and PnP",
    )
    parser.add_argument(
        "--indices",
        nargs="+",
        choices=("spread", "drawn", "counted"),
        default=["spread"],
        help="image indices: spread over the trained range, drawn at random, counted from 0",
    )
    parser.add_argument(
        "--same-frames",
        action="store_true",
        help="with several --views: more tables, which score only the frames common to all of them",
    )
    parser.add_argument("--max-gap", type=int, help="largest number of frames between chosen views")
    parser.add_argument("--cloud-points", type=int, default=20_000, help="points per cloud; 0: all, slow")
    parser.add_argument("--walks", type=int, default=3, help="synthetic walks for the mapper")
    parser.add_argument(
        "--accelerate",
        default="exact",
        metavar="WHAT",
        help="as for reconstruct; stream concerns the mapper only (default: %(default)s)",
    )
    parser.add_argument("--walk-frames", type=int, default=200, help="frames per sequence for the mapper")
    parser.add_argument("--size", type=int, help="longer side at the network in pixels (default: model's)")
    parser.add_argument(
        "--peer",
        choices=("colmap",),
        help="also run this program on the same frames (needs pycolmap), a row of its own in the tables "
        "pose, trajectory and mapper",
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawn image indices")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="precision of the network; auto is float16 with float32 sums on a GPU, float32 on a CPU",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables as Markdown, and write them when --output is given."""
    _check(arguments)
    # Small networks run in many short parallel sections.  On a busy CPU, threads that spin while waiting for
    # the next section take three times as long.  Only effective before PyTorch is first loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from fast3r_ros.evaluation import tables
    from fast3r_ros.evaluation.runner import side_by_side
    from fast3r_ros.model.precision import resolve_device
    from fast3r_ros.model.speed.acceleration import Acceleration

    acceleration = Acceleration.parse(arguments.accelerate)
    if arguments.output:
        tables.check_folder(arguments.output)
    sequences, walks = _sequences(arguments)
    models = list(dict.fromkeys(arguments.model or ["demo"]))
    problems: list[str] = []
    sizes, results = [], {}
    for model in models:
        network, size = _load(arguments, model)
        found: list[str] = []
        # baselines without a network and other programs run once
        first = model == models[0]
        rows = _offline(arguments, sequences, network, size, found, first)
        results[model] = rows | _mapped(arguments, walks, network, found, first)
        problems += [f"{model}: {problem}" for problem in found] if len(models) > 1 else found
        sizes.append(size)
        del network  # frees its memory for the next one
    report: dict[str, Any] = {
        "dataset": arguments.dataset,
        "model": ", ".join(models),
        "settings": {
            "split": arguments.split if arguments.dataset == SYNTHETIC else "",
            "size": sizes[0] if len(set(sizes)) == 1 else ", ".join(map(str, sizes)),
            "device": resolve_device(arguments.device),
            "seed": arguments.seed,
            "accelerate": str(acceleration),
            "cloud_points": arguments.cloud_points,
        },
        "problems": problems,
        "tables": side_by_side(results),
    }
    if problems and not any(table["mean"] for table in report["tables"].values()):
        raise UserError(problems[0])
    print(tables.markdown(report))
    if arguments.output:
        for path in tables.write(report, arguments.output):
            print(path)
    return 1 if problems else 0


def _load(arguments: argparse.Namespace, model: str) -> tuple[WindowNetwork, int]:
    """A network, and the longer side of its input images in pixels."""
    from fast3r_ros.mapping.network import Fast3RNetwork
    from fast3r_ros.networks import NetworkOptions, load_network

    options = NetworkOptions(arguments.device, arguments.dtype, arguments.size, arguments.accelerate)
    network = load_network(model, options)
    own = network.model.config.image_size if isinstance(network, Fast3RNetwork) else IMAGE_SIZE
    return network, arguments.size or own


def _check(arguments: argparse.Namespace) -> None:
    for name in ("views", "scenes", "max_gap", "walks", "walk_frames", "size"):
        value = getattr(arguments, name)
        smallest = min(value) if isinstance(value, list) else value
        if smallest is not None and smallest < 1:
            raise UserError(f"--{name.replace('_', '-')} is {smallest}, it must be 1 or more")
    if arguments.same_frames and len(set(arguments.views)) < 2:
        raise UserError("--same-frames compares numbers of views; give several, such as --views 2 4 8")
    if arguments.dataset != SYNTHETIC and arguments.data_root is None:
        raise UserError(f"--data-root is missing; give the folder of the {arguments.dataset} dataset")


def _sequences(arguments: argparse.Namespace) -> tuple[list[PosedSequence], list[PosedSequence]]:
    """Sequences for one forward pass, and sequences for the mapper; none where no table needs them."""
    from fast3r_ros.datasets import PosedSequence, open_dataset
    from fast3r_ros.evaluation import held_out

    mapped = "mapper" in arguments.tables
    passes = set(arguments.tables) != {"mapper"}
    if arguments.dataset == SYNTHETIC:
        scenes, split = arguments.scenes or 50, arguments.split
        walks = min(arguments.walks, scenes)
        return (
            held_out.short_walks(split, scenes, max(arguments.views)) if passes else [],
            held_out.long_walks(split, walks, arguments.walk_frames) if mapped else [],
        )
    sequences = open_dataset(arguments.dataset, arguments.data_root)[: arguments.scenes]
    starts = [PosedSequence(item.name, item.frames[: arguments.walk_frames]) for item in sequences]
    return sequences if passes else [], starts if mapped else []


def _offline(
    arguments: argparse.Namespace,
    sequences: list[PosedSequence],
    network: WindowNetwork,
    size: int,
    problems: list[str],
    first: bool,
) -> dict[str, list[Row]]:
    from tqdm import tqdm

    from fast3r_ros.evaluation import offline, runner
    from fast3r_ros.mapping.network import Fast3RNetwork

    def predict_with(indices: str) -> offline.Predict:
        if isinstance(network, Fast3RNetwork):
            return offline.predictor(network.model, indices, arguments.seed)
        return offline.window_predictor(network)

    chosen = [table for table in arguments.tables if table in runner.OFFLINE_TABLES]
    if not chosen:
        return {}
    indices = arguments.indices if isinstance(network, Fast3RNetwork) else [runner.NO_INDICES]
    grid = runner.settings(arguments.views, arguments.heads, indices)
    with tqdm(total=len(sequences), unit="scene", desc="one pass", disable=None) as bar:
        return runner.run_offline(
            sequences,
            predict_with,
            grid,
            chosen,
            size,
            max_gap=arguments.max_gap,
            max_points=arguments.cloud_points,
            same_frames=arguments.same_frames,
            on_scene=bar.update,
            problems=problems,
            peer=arguments.peer if first else None,
            baselines=first,
        )


def _mapped(
    arguments: argparse.Namespace,
    walks: list[PosedSequence],
    network: WindowNetwork,
    problems: list[str],
    first: bool,
) -> dict[str, list[Row]]:
    if "mapper" not in arguments.tables:
        return {}
    from tqdm import tqdm

    from fast3r_ros.evaluation.mapped import score_mapper, score_peer
    from fast3r_ros.evaluation.runner import noted

    total = sum(len(walk.frames) for walk in walks)
    with tqdm(total=total, unit="frame", desc="mapper", disable=None) as bar:
        rows: list[dict[str, Any]] = []
        for walk in walks:
            with noted(problems, f"{walk.name}, table mapper"):
                scores = score_mapper(walk, network, on_frame=bar.update)
                rows.append({"scene": walk.name, "method": "mapper", **scores})
            if arguments.peer and first:
                with noted(problems, f"{walk.name}, {arguments.peer}"):
                    rows.append({"scene": walk.name, **score_peer(arguments.peer, walk)})
    return {"mapper": rows}
