"""The network: configuration, encoder, fusion transformer, heads, checkpoints and image preprocessing."""

from fast3r_ros.model.fast3r import Fast3R, FusedFeatures, Pointmap, ViewPrediction, ViewTokens
from fast3r_ros.model.network_config import Fast3RConfig
from fast3r_ros.model.preprocess import PreparedImage, normalize, prepare_image, prepare_images

__all__ = [
    "Fast3R",
    "Fast3RConfig",
    "FusedFeatures",
    "Pointmap",
    "PreparedImage",
    "ViewPrediction",
    "ViewTokens",
    "normalize",
    "prepare_image",
    "prepare_images",
]
