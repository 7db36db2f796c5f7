"""The mapping node with a stand-in for the network: ground truth of the synthetic walk, disturbed.

Usage: double_node.py SECONDS_PER_PASS [ROS arguments].  Started by tests as a process of its own.
"""

import sys
import time
from collections.abc import Sequence

from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction
from fast3r_ros.ros.config import NodeConfig
from fast3r_ros.ros.mapping_node import main
from fast3r_ros.synthetic.network_double import TrueNetwork
from fast3r_ros.synthetic.sequence import demo_sequence


class SlowNetwork:
    """A TrueNetwork whose passes take a given time."""

    def __init__(self, seconds: float) -> None:
        self._network = TrueNetwork(demo_sequence())
        self._seconds = seconds

    def encode(self, frame: Frame) -> EncodedView:
        return self._network.encode(frame)

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        time.sleep(self._seconds)
        return self._network.reconstruct(views)


def load_network(config: NodeConfig) -> SlowNetwork:
    return SlowNetwork(float(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main([sys.argv[0], *sys.argv[2:]], load_network))
