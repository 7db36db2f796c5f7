"""`fast3r view`: show a finished map in the browser."""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-command's arguments."""
    parser.add_argument(
        "map", type=Path, help="folder that reconstruct wrote, a .ply, .pcd or .glb, or COLMAP"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 allows access from the network (default: %(default)s)",
    )
    parser.add_argument(
        "--token", default="", help="ask browsers for this token in the address; 8 or more letters and digits"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name by which browsers may reach the viewer (robot.lan); may be repeated",
    )
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Serve the map until Ctrl-C."""
    from fast3r_ros.cli import interrupt
    from fast3r_ros.io.results import read_results
    from fast3r_ros.viewer.web import WebViewer

    results = read_results(arguments.map)
    if results.caveat:
        print(results.caveat, flush=True)
    title = arguments.map.resolve().name
    viewer = WebViewer(arguments.host, arguments.port, arguments.token, arguments.allow_host, title)
    try:
        viewer.show(results.cloud, results.cameras, results.read_images(), results.unit)
        counts = f"{len(results.cloud.points):,} points, {len(results.cameras)} cameras"
        print(f"{counts}{results.left_out}: {viewer.address}", flush=True)
        if viewer.open_to_others:
            print("anyone who can reach this machine can see the map; --token asks for a token", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        interrupt.expected()
        return 0
    finally:
        viewer.stop()
        if results.caveat:
            print(f"\n{results.caveat}", flush=True)
