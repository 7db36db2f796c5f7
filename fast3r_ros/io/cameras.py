"""cameras.json: every view's intrinsics and pose; and `CameraRecord`, from which camera files are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.mapping.data import Float64

FORMAT = "fast3r_ros cameras 1"


@dataclass(frozen=True)
class SourceImage:
    """The original image of a view, upright and without lens distortion, as the mapper received it.

    name: the file, or the number of a video's frame or a bag's message.  width, height: in pixels.
    network_from_image: (3, 3) from its pixels to those at network size, centres at integer + 0.5 in both.
    """

    name: str
    width: int
    height: int
    network_from_image: Float64


@dataclass(frozen=True)
class CameraRecord:
    """A view with its pose, without its pixels.

    name: file name of its pictures without suffix.  width, height: of the image at network size, in pixels.
    intrinsics: (3, 3) for those pixels, centres at integer + 0.5.  map_from_camera: (4, 4) rigid.  source:
    the original image, if known.
    """

    name: str
    stamp_ns: int
    camera: str
    width: int
    height: int
    intrinsics: Float64
    map_from_camera: Float64
    source: SourceImage | None = None

    def of_source(self) -> CameraRecord:
        """The view with the size and the intrinsics of its original image, if known."""
        if self.source is None:
            return self
        matrix = np.linalg.inv(self.source.network_from_image) @ self.intrinsics
        return replace(self, width=self.source.width, height=self.source.height, intrinsics=matrix)


def name_of(keyframe_id: int) -> str:
    """The name of a keyframe's pictures, without suffix."""
    return f"{keyframe_id:06d}"


def write_cameras(path: str | Path, records: Sequence[CameraRecord], *, unit: str) -> None:
    """Write the views' intrinsics and poses as JSON.

    unit: of the translations, "m" or "map units".  Raises UserError when it cannot be written.
    """
    content = {
        "format": FORMAT,
        "unit": unit,
        "axes": "camera: x right, y down, z forward; map: z up; pixel centres at integer + 0.5",
        "views": [
            {
                "name": record.name,
                "stamp_ns": record.stamp_ns,
                "camera": record.camera,
                "width": record.width,
                "height": record.height,
                "intrinsics": record.intrinsics.tolist(),
                "map_from_camera": record.map_from_camera.tolist(),
                **({} if record.source is None else {"source": _source_entry(record, record.source)}),
            }
            for record in records
        ],
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _source_entry(record: CameraRecord, source: SourceImage) -> dict[str, Any]:
    """The original image with its own intrinsics, so that results refer to the photos."""
    return {
        "name": source.name,
        "width": source.width,
        "height": source.height,
        "intrinsics": record.of_source().intrinsics.tolist(),
        "network_from_image": source.network_from_image.tolist(),
    }


def _read_source(entry: Mapping[str, Any] | None) -> SourceImage | None:
    if entry is None:
        return None
    transform = np.array(entry["network_from_image"], np.float64).reshape(3, 3)
    return SourceImage(str(entry["name"]), int(entry["width"]), int(entry["height"]), transform)


def read_cameras(path: str | Path) -> tuple[list[CameraRecord], str]:
    """Read cameras.json: the views and the unit of length.  Raises UserError for any other file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(f"{path} has the format {content['format']!r}, this version reads {FORMAT!r}")
        records = [
            CameraRecord(
                view["name"],
                int(view["stamp_ns"]),
                view["camera"],
                int(view["width"]),
                int(view["height"]),
                np.array(view["intrinsics"], np.float64).reshape(3, 3),
                np.array(view["map_from_camera"], np.float64).reshape(4, 4),
                _read_source(view.get("source")),
            )
            for view in content["views"]
        ]
        return records, str(content["unit"])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a cameras.json of this package ({error})") from error
