"""The node's console output: once per change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus
from patience import wait_until
from reports import camera, mapper_status
from ros_encoders import known_picture
from ros_harness import DOUBLE, NODE, Listener, Program, arguments, constants, domain, running
from sensor_msgs.msg import CompressedImage, Image

from fast3r_ros.ros.console import Console
from fast3r_ros.ros.image_messages import rgb_to_jpeg
from fast3r_ros.ros.status import Report


class Lines(list[str]):
    """The logged lines."""

    def info(self, text: str) -> None:
        self.append(text)

    warning = info

    def news(self) -> list[str]:
        new = list(self)
        self.clear()
        return new


def test_each_change_is_reported_once() -> None:
    lines = Lines()
    console = Console(lines)
    report = Report(
        2,
        1,
        MappingStatus.WAITING,
        cameras=[camera(publishers=[], silence=None)],
        mapper=mapper_status(metres=False),
    )
    console.update(report, 0.0)
    assert lines.news() == ["subscribed to /image, reliable"]
    console.update(report, 1.0)
    assert lines.news() == []
    others = [camera(publishers=[], silence=None, others=["/cam/image_raw/compressed"])]
    for now in (4.0, 5.0):
        console.update(replace(report, cameras=others), now)
    (line,) = lines.news()
    assert "/image has no publisher" in line
    assert "/cam/image_raw/compressed" in line
    for other in (
        "/cam1/image",
        "/cam2/image",
        "/cam/2",
        "/cam/3",
    ):  # a camera that comes up under another name
        others = [camera(publishers=[], silence=None, others=[other])]
        for now in (5.0, 5.5):
            console.update(replace(report, cameras=others), now)
        (line,) = lines.news()
        assert f"images are published on {other}" in line
    running_ = replace(report, state=MappingStatus.MAPPING, cameras=[camera(image="4x3, rgb8, frame lens")])
    for now in (6.0, 7.0):
        console.update(running_, now)
    assert lines.news() == [
        "images on /image: 4x3, rgb8, frame lens, calibrated",
        "receiving images on /image",
    ]
    for silence in (3.5, 4.5):
        console.update(
            replace(running_, cameras=[camera(silence=silence, image="4x3, rgb8, frame lens")]), 8.0
        )
    assert lines.news() == ["no image for 3.5 s on /image"]
    console.update(running_, 9.0)
    assert lines.news() == ["receiving images on /image"]
    for waiting in ("no transform odom -> lens", "no transform odom -> lens", ""):
        console.update(replace(running_, waiting_for=waiting), 10.0)
    assert lines.news() == ["no transform odom -> lens", "transforms are broadcast"]
    lost = replace(running_, state=MappingStatus.LOST, last_error="too few pixels agree")
    for each in (lost, lost, running_):
        console.update(each, 11.0)
    assert lines.news() == ["lost: too few pixels agree", "found: the newest window fits the map again"]
    grown = replace(running_, mapper=mapper_status(metres=True, scale_sigma=0.04, submaps=2, loops_closed=1))
    for each in (grown, grown):
        console.update(each, 12.0)
    assert [line.split(":")[0] for line in lines.news()] == [
        "scale adopted from odometry, 4.0% uncertain",
        "a submap was started",
        "a loop was closed, 1 in all",
    ]
    console.update(replace(running_, mapper=mapper_status(metres=True, submaps=0)), 13.0)  # a reset
    assert lines.news() == []


def test_a_compressed_only_camera_is_found_and_missing_stamps_are_reported() -> None:
    domain_id = domain(22)
    given = [*constants({"input.timeout": 1.0}), *arguments({}, {"image": "/cam/image_raw"})]
    node = Program([*DOUBLE, "0.02", *given], domain_id)
    listener = Listener(domain_id)
    listener.listen(MappingStatus, f"{NODE}/status")
    try:
        with running(node):
            wait_until(lambda: "/cam/image_raw has no publisher" in node.output(), "the missing topic")
            for other in ("/else1/image", "/else2/image"):  # they are found later, one after the other
                listener.node.create_publisher(Image, other, 10)
                wait_until(lambda other=other: other in node.output(), f"a line that names {other}")
            topic = "/cam/image_raw/compressed"
            publisher = listener.node.create_publisher(CompressedImage, topic, 10)
            wait_until(lambda: publisher.get_subscription_count() > 0, "a subscription")
            picture = known_picture()

            def send() -> bool:
                publisher.publish(rgb_to_jpeg(picture, 0, "lens"))
                return "does not stamp its images" in node.output()

            wait_until(send, "the line on stamps")
            publisher.publish(rgb_to_jpeg(picture, 0, "lens"))
            publisher.publish(rgb_to_jpeg(picture, 10**9, "lens"))  # one of them is stamped
            height, width = np.asarray(picture).shape[:2]
            wait_until(lambda: f"images on {topic}" in node.output(), "the first image to be told")
            output = node.output()
            assert f"subscribed to {topic}" in output
            assert f"images on {topic}: {width}x{height}" in output
            assert "not calibrated" in output
            assert output.count("does not stamp its images") == 1
            status = listener.wait_for(
                f"{NODE}/status", lambda m: any(d.reason == "not stamped" for d in m.drops)
            )
            assert status.frames_received >= 2
    finally:
        listener.close()
