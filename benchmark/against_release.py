"""Compare this network with the official release on the same machine, in the same interpreter.

    python benchmark/against_release.py --release PATH_TO_A_CHECKOUT_OF_facebookresearch/fast3r
    python benchmark/against_release.py --release PATH --device cuda --dtype bfloat16 --network large \\
        --views 32 --size 384 512 --slide 4 --many 1500

Each implementation lives in a process of its own with the same number of threads and the same weights;
passes are interleaved A B A B, so that a change of the machine's speed meets both.  Besides this package's
needs the release wants `einops` and `omegaconf`.  Prints one JSON document with medians, ratios, the largest
difference of the results, and whether each of TARGETS holds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# what is aimed at on a GPU with full-size networks, 32 views of 512x384 and slides of 4
TARGETS = {"full_to_release": 0.6, "peak_to_release": 0.5, "slide_to_our_full": 0.4, "many_to_release": 0.7}
ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).resolve().parent / "against_release_worker.py"


class Worker:
    """One implementation in a process of its own, which runs a pass whenever it is told to."""

    def __init__(self, arguments: argparse.Namespace, implementation: str, results: Path) -> None:
        options = {
            "implementation": implementation,
            "release": str(arguments.release),
            "threads": arguments.threads,
            "views": arguments.views,
            "size": arguments.size,
            "attention": arguments.release_attention,
            "network": arguments.network,
            "device": arguments.device,
            "dtype": arguments.dtype,
            "slide": arguments.slide,
            "many": arguments.many,
            "results": str(results),
        }
        command = [sys.executable, str(WORKER), json.dumps(options)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self._answer()

    def run(self, task: str) -> dict[str, Any]:
        """Run `full`, `slide` or `many` once; returns seconds and peak_bytes above the loaded weights, or why
        it `failed`.
        """
        assert self.process.stdin is not None
        print(task, file=self.process.stdin, flush=True)
        return self._answer()

    def stop(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"a worker ended early with status {self.process.wait()}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--release", type=Path, required=True, help="checkout of facebookresearch/fast3r")
    parser.add_argument(
        "--release-attention", default="flash_attention", help="pytorch_naive or flash_attention"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="measured passes of each kind (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of each process (default: %(default)s)"
    )
    parser.add_argument("--views", type=int, default=8, help="views of the window (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(160, 224), metavar=("H", "W"), help="size of a view"
    )
    parser.add_argument(
        "--network",
        default="base",
        choices=("base", "paper", "large"),
        help="768/12/12 everywhere, the paper's fusion of 768/12/12, or the released one (default: base)",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of our weights; the release computes in it under autocast, as it does itself",
    )
    parser.add_argument("--slide", type=int, default=2, help="new views of the sliding window (default: 2)")
    parser.add_argument("--many", type=int, default=0, help="also one pass over this many views")
    arguments = parser.parse_args()
    if not 0 < arguments.slide < arguments.views:
        parser.error(f"--slide {arguments.slide} is not less than --views {arguments.views}")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_measure(arguments, Path(folder)), indent=2))


def _measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    release = Worker(arguments, "release", folder / "release.npz")
    ours = Worker(arguments, "ours", folder / "ours.npz")
    first = {"release": release.run("full"), "ours": ours.run("full")}  # also the warm-up
    ours.run("slide")
    rounds = []
    for _ in range(arguments.rounds):
        passes = {"release_full": release.run("full"), "ours_full": ours.run("full")}
        rounds.append(passes | {"ours_slide": ours.run("slide")})
    many = {"release": release.run("many"), "ours": ours.run("many")} if arguments.many else {}
    release.stop()
    ours.stop()
    medians, fastest, processor = (
        {key: choose(one[key][field] for one in rounds) for key in rounds[0]}
        for choose, field in (
            (statistics.median, "seconds"),
            (min, "seconds"),
            (statistics.median, "processor_seconds"),
        )
    )
    peaks = {key: value["peak_bytes"] for key, value in first.items()}
    ratios = _ratios(medians)
    peak_ratio = peaks["ours"] / peaks["release"]
    return {
        "benchmark": "against_release",
        "machine": _machine(arguments),
        "setting": {
            "views": arguments.views,
            "size_hw": list(arguments.size),
            "dtype": arguments.dtype,
            "network": arguments.network,
            "heads": 2,
            "release_attention": arguments.release_attention,
            "slide": arguments.slide,
        },
        "seconds_median": medians,
        "seconds_fastest": fastest,
        "processor_seconds_median": processor,
        "seconds_all": [{key: value["seconds"] for key, value in one.items()} for one in rounds],
        "peak_bytes_above_weights": peaks,
        "ratios_of_medians": ratios,
        "ratios_of_fastest": _ratios(fastest),
        "ratios_of_processor_time": _ratios(processor),
        "peak_to_release": peak_ratio,
        "many": {"views": arguments.many, **many} if many else None,
        "targets": targets({**ratios, "peak_to_release": peak_ratio, "many_to_release": _many_ratio(many)}),
        "difference_to_release": _difference(folder / "ours.npz", folder / "release.npz"),
        "difference_slide_to_full": _slide_difference(folder / "ours.npz"),
    }


def targets(measured: dict[str, float | None]) -> dict[str, dict[str, Any]]:
    """Each of TARGETS with what was measured, and whether it holds; None for what was not measured."""
    return {
        name: {
            "measured": measured[name],
            "at_most": limit,
            "holds": None if measured[name] is None else measured[name] <= limit,  # type: ignore[operator]
        }
        for name, limit in TARGETS.items()
    }


def _many_ratio(many: dict[str, dict[str, Any]]) -> float | None:
    """Our time to theirs; 0 where only ours fits into memory, infinite where only theirs does."""
    if not many or all("failed" in each for each in many.values()):
        return None
    if "failed" in many["release"]:
        return 0.0
    return float("inf") if "failed" in many["ours"] else many["ours"]["seconds"] / many["release"]["seconds"]


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    machine = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads}
    if arguments.device == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return machine | {"device": arguments.device, "torch": torch.__version__}


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    release, full, slide = (seconds[key] for key in ("release_full", "ours_full", "ours_slide"))
    return {
        "full_to_release": full / release,
        "slide_to_release_full": slide / release,
        "slide_to_our_full": slide / full,
    }


def _difference(ours: Path, theirs: Path) -> float:
    import numpy as np

    a, b = np.load(ours), np.load(theirs)
    return max(float(np.max(np.abs(a[key] - b[key]) / (1 + np.abs(b[key])))) for key in b.files)


def _slide_difference(ours: Path) -> float:
    import numpy as np

    result = np.load(ours)
    pairs = [(key, key.replace("slide_", "")) for key in result.files if key.startswith("slide_")]
    return max(float(np.abs(result[a] - result[b]).max()) for a, b in pairs)


if __name__ == "__main__":
    main()
