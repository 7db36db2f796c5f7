"""A recording for rerun, read by rerun's own reader; without rerun there is a one-line error."""

from __future__ import annotations

import importlib.util
import sys

import cv2
import numpy as np
import pytest

from fast3r_ros.cli import main
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.io.rerun_file import TIMELINE, write_rerun
from fast3r_ros.io.view_images import write_view_images

INSTALLED = importlib.util.find_spec("rerun") is not None
needs_rerun = pytest.mark.skipif(
    not INSTALLED, reason="rerun is not installed: pip install -r requirements/readers.txt"
)


@needs_rerun
def test_rerun_reads_the_cloud_and_the_cameras(tmp_path, walk):
    from rerun.chunk import RrdReader

    records = []
    for view in walk.views:
        height, width = view.image.shape[:2]
        name = f"{view.keyframe_id:06d}"
        write_view_images(tmp_path, name, view)
        pose = view.map_from_camera
        records.append(CameraRecord(name, view.stamp_ns, "front", width, height, view.intrinsics, pose))
    write_rerun(tmp_path / "walk.rrd", walk.cloud, records, tmp_path / "images")
    columns = {}
    for chunk in RrdReader(tmp_path / "walk.rrd").stream().to_chunks():
        table = chunk.to_record_batch()
        for name in table.schema.names:
            columns[chunk.entity_path, name] = table.column(name).to_pylist()
    (points,), (colors,) = columns["/map", "Points3D:positions"], columns["/map", "Points3D:colors"]
    np.testing.assert_array_equal(np.array(points, np.float32), walk.cloud.points)
    rgba = np.array(colors, np.uint32)[:, None] >> np.array([24, 16, 8], np.uint32) & 255
    np.testing.assert_array_equal(rgba, walk.cloud.colors)
    np.testing.assert_array_equal(
        np.array(columns["/map", "confidence"][0], np.float32), walk.cloud.confidence
    )
    stamps = np.array(columns["/cameras/front", TIMELINE], "datetime64[ns]").astype(np.int64)
    np.testing.assert_array_equal(stamps, [record.stamp_ns for record in records])
    poses = np.array([record.map_from_camera for record in records])
    places = np.array(columns["/cameras/front", "Transform3D:translation"])[:, 0]
    np.testing.assert_allclose(places, poses[:, :3, 3], atol=1e-4)
    by_columns = np.array(columns["/cameras/front", "Transform3D:mat3x3"])[:, 0].reshape(-1, 3, 3)
    np.testing.assert_allclose(by_columns.transpose(0, 2, 1), poses[:, :3, :3], atol=1e-4)
    lenses = np.array(columns["/cameras/front", "Pinhole:image_from_camera"])[:, 0].reshape(-1, 3, 3)
    np.testing.assert_allclose(lenses.transpose(0, 2, 1)[3], records[3].intrinsics, atol=1e-4)
    jpeg = np.array(columns["/cameras/front", "EncodedImage:blob"][5][0], np.uint8)
    image = cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(image.astype(int) - walk.views[5].image).mean() < 8, "the view's image, but for JPEG"


@needs_rerun
def test_a_recording_of_nothing_and_without_images(tmp_path, walk):
    from rerun.chunk import RrdReader

    write_rerun(tmp_path / "empty.rrd", walk.cloud, [])
    assert RrdReader(tmp_path / "empty.rrd").recordings()


def test_missing_rerun_is_reported_in_one_line_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)  # how Python marks a package that cannot be imported
    recording = tmp_path / "walk.rrd"
    arguments = ["reconstruct", "synthetic:2", "--output", str(tmp_path / "out"), "--rerun", str(recording)]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install rerun-sdk" in line
    assert list(tmp_path.iterdir()) == []
