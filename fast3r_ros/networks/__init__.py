"""The networks that map: their interface, and their common parts.

A network turns a frame into an encoded view, and a window of encoded views into pointmaps (`WindowNetwork`).
Your own package can offer one through an entry point of the group `fast3r_ros.networks`, whose value is a
`LoadNetwork`; `model: name:checkpoint` selects it in the node, `fast3r reconstruct` and `fast3r evaluate`.
docs/networks.md shows a complete package.
"""

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import DescriptorLimits
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction, WindowNetwork
from fast3r_ros.model.preprocess import PreparedImage, prepare_image
from fast3r_ros.networks.depth import from_depth
from fast3r_ros.networks.loading import LoadNetwork, NetworkOptions, known_networks, load_network, split_model

__all__ = [
    "DescriptorLimits",
    "EncodedView",
    "Frame",
    "LoadNetwork",
    "NetworkOptions",
    "PreparedImage",
    "Reconstruction",
    "UserError",
    "WindowNetwork",
    "from_depth",
    "known_networks",
    "load_network",
    "prepare_image",
    "split_model",
]
