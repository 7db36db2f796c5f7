"""Pictures of single views: the image at network size, its depth and its confidence, as PNG."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.mapping.data import Float32, UInt8, ViewEstimate

DEPTH_STEPS = 1000  # steps of a 16-bit depth PNG per unit of length
CONFIDENCE_STEPS = 100  # steps of a 16-bit confidence PNG per unit of confidence


def write_view_images(directory: str | Path, name: str, view: ViewEstimate) -> None:
    """Write `images/NAME.png`, `depth/NAME.png` and `confidence/NAME.png` below `directory`.

    depth: 16 bits, z in the camera in thousandths of the map's unit of length, 0 where it is not valid or
    beyond 65.  confidence: 16 bits, hundredths.  Raises UserError when a file cannot be written.
    """
    directory = Path(directory)
    depth = np.where(view.valid, view.points_camera[..., 2], 0)
    _write_png(directory / "images" / f"{name}.png", cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR))
    _write_png(directory / "depth" / f"{name}.png", _steps(depth, DEPTH_STEPS, overflow=0))
    _write_png(directory / "confidence" / f"{name}.png", _steps(view.confidence, CONFIDENCE_STEPS))


def rescale_depth(directory: str | Path, name: str, factor: float) -> None:
    """Multiply a written depth picture after a change of the map's scale.  Raises UserError."""
    path = Path(directory) / "depth" / f"{name}.png"
    written = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if written is None:
        raise UserError(f"cannot read {path} again, to rescale it")
    _write_png(path, _steps(written.astype(np.float32), factor, overflow=0))


def read_image(path: str | Path) -> UInt8:
    """One of the `images`, (H, W, 3) uint8 RGB.  Raises UserError when it cannot be read."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise UserError(f"cannot read the image {path}")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _steps(values: Float32, steps: float, overflow: int = 65535) -> np.ndarray:
    """Values as 16-bit numbers of steps; too large values become `overflow`, non-finite ones 0."""
    scaled = np.nan_to_num(values.astype(np.float64) * steps, nan=0.0, posinf=np.inf, neginf=0.0)
    whole = np.clip(np.round(np.minimum(scaled, 1e9)), 0, None)
    return np.where(whole > 65535, overflow, whole).astype(np.uint16)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    encoded = cv2.imencode(".png", pixels)[1]
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
