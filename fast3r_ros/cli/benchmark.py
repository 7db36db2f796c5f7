"""`fast3r benchmark NAME`: measure and print one JSON document.

One module per benchmark in `fast3r_ros/benchmark/`, each with `add_arguments(parser)` and `run(arguments)`,
which returns the document.  A module imports optional packages only in `run`.
"""

from __future__ import annotations

import argparse
import importlib
import json

# name, module, one line of help
BENCHMARKS = (
    ("network", "fast3r_ros.benchmark.network_time", "the network's stages by views, size and dtype"),
    ("window", "fast3r_ros.benchmark.window_time", "a sliding window from frame to message, per stage"),
    ("scale", "fast3r_ros.benchmark.one_pass_time", "one pass over hundreds of views: time and peak memory"),
    ("acceleration", "fast3r_ros.benchmark.acceleration_error", "what accelerations save, and their error"),
    (
        "precision",
        "fast3r_ros.benchmark.precision_error",
        "what each dtype costs in accuracy, emulated on a CPU",
    ),
    ("indices", "fast3r_ros.benchmark.index_accuracy", "accuracy by the choice of image indices"),
    (
        "mapping",
        "fast3r_ros.benchmark.mapping_promises",
        "the mapper's guarantees against synthetic ground truth",
    ),
    ("node", "fast3r_ros.benchmark.node_load", "the ROS node: callbacks, drops, latency, CPU over DDS"),
    (
        "report",
        "fast3r_ros.benchmark.benchmark_report",
        "tables and figures from the other benchmarks' output",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmarks and their arguments."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="NAME", required=True)
    for name, module, text in BENCHMARKS:
        benchmark = benchmarks.add_parser(name, help=text, description=text)
        importlib.import_module(module).add_arguments(benchmark)


def run(arguments: argparse.Namespace) -> int:
    """Run one benchmark and print its document."""
    module = next(module for name, module, _ in BENCHMARKS if name == arguments.benchmark)
    print(json.dumps(importlib.import_module(module).run(arguments), indent=2))
    return 0
