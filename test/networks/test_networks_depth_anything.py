"""Depth Anything 3 with random weights: upstream's own code, on the CPU, through our adapter."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.calibration import FocalLengths, network_focals
from fast3r_ros.mapping.config import RegistrationConfig
from fast3r_ros.mapping.data import Frame, Reconstruction
from fast3r_ros.mapping.registration import place_views
from fast3r_ros.mapping.tracking import unusable_result
from fast3r_ros.mapping.window import WindowView
from fast3r_ros.model.safetensors import write_safetensors
from fast3r_ros.networks import NetworkOptions, depth_anything, load_network
from fast3r_ros.networks.depth_anything import INSTALL, METRIC_FOCAL, DepthAnything, Tokens, network
from fast3r_ros.synthetic.sequence import demo_sequence

SIZE = 112  # pixels; 8 patches


def require() -> None:
    for module in ("depth_anything_3", "addict", "einops", "omegaconf"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed here: {INSTALL}")


@pytest.fixture(scope="module")
def upstream() -> Iterator[nn.Module]:
    """Upstream's small network with random weights; its camera head gives a field of view of 1.2 by 0.9."""
    require()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = network("da3-small")
    with torch.no_grad():
        net.cam_dec.fc_fov[0].bias.copy_(torch.tensor([0.9, 1.2]))
        net.cam_dec.fc_qvec.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    yield net
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def views(upstream: nn.Module) -> list[WindowView]:
    adapter = DepthAnything(upstream, SIZE)
    walk = demo_sequence(2.0)
    frames = [Frame(i, "a", walk[5 * i].image) for i in range(4)]
    return [WindowView.of(frame, adapter.encode(frame)) for frame in frames]


def small_metric_network() -> nn.Module:
    """Upstream's metric network with random weights, in the small shape: its own has 0.3 billion."""
    from depth_anything_3.cfg import create_object, load_config

    require()
    config = load_config(str(files("depth_anything_3") / "configs" / "da3metric-large.yaml"))
    config.net.update(name="vits", out_layers=[2, 5, 8, 11])
    config.head.update(dim_in=384, features=64, out_channels=[48, 96, 192, 384])
    torch.manual_seed(1)
    return create_object(config).eval()


@pytest.fixture(scope="module")
def metric(upstream: nn.Module) -> nn.Module:
    return small_metric_network()


def test_an_image_goes_to_multiples_of_14_and_back(upstream: nn.Module) -> None:
    adapter = DepthAnything(upstream, 120)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    intrinsics = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    view = adapter.encode(Frame(0, "a", image, intrinsics))
    height, width = view.image.shape[:2]
    assert (height % 14, width % 14, max(height, width)) == (0, 0, 112)
    assert view.tokens.pixels.shape == (3, height, width)
    assert np.linalg.norm(view.descriptor) == pytest.approx(1.0, abs=1e-5)
    # the centre of the image stays the centre, and the pixels are square
    assert view.intrinsics is not None
    np.testing.assert_allclose(view.network_from_image @ [320, 240, 1], [width / 2, height / 2, 1], atol=1.0)
    assert view.intrinsics[0, 0] == pytest.approx(view.intrinsics[1, 1])
    # an image that has been resized stays as it is: keyframes are encoded again
    again = adapter.encode(Frame(0, "a", view.image))
    np.testing.assert_array_equal(again.image, view.image)
    np.testing.assert_array_equal(again.network_from_image, np.eye(3))


def test_the_encoder_gets_imagenets_normalisation(upstream: nn.Module) -> None:
    white = DepthAnything(upstream, SIZE).encode(Frame(0, "a", np.full((84, 112, 3), 255, np.uint8)))
    # 1 minus ImageNet's mean, by its deviation: what upstream's Normalize makes of white
    np.testing.assert_allclose(white.tokens.pixels[:, 0, 0], [2.24891, 2.42857, 2.64], atol=1e-5)


def test_points_are_upstreams(upstream: nn.Module, views: list[WindowView]) -> None:
    from depth_anything_3.utils.geometry import (
        as_homogeneous,
        homogenize_points,
        sample_image_grid,
        unproject,
    )

    adapter = DepthAnything(upstream, SIZE)
    encoded = [view.encoded for view in views]
    maps = adapter.reconstruct(encoded)
    assert unusable_result(views, maps) == ""
    with torch.inference_mode():
        raw = upstream(torch.stack([view.tokens.pixels for view in encoded])[None], ref_view_strategy="first")
    height, width = encoded[0].image.shape[:2]
    grid = sample_image_grid((height, width))[0] * torch.tensor([width, height])
    camera_from_world = as_homogeneous(raw.extrinsics)[0].double()
    first_from_camera = camera_from_world[0] @ camera_from_world.inverse()
    for i in range(len(views)):
        local = unproject(grid, raw.depth[0, i], raw.intrinsics[0, i])
        torch.testing.assert_close(maps.points_local[i], local, rtol=1e-4, atol=1e-4)
        world = homogenize_points(local.double()) @ first_from_camera[i].T
        torch.testing.assert_close(maps.points_global[i], world[..., :3].float(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(maps.confidence_local[i], raw.depth_conf[0, i])
        assert maps.confidence_local[i].min() >= 1.0
        # a point projects to its pixel
        assert maps.intrinsics is not None
        pixels = maps.points_local[i].double().numpy() @ maps.intrinsics[i].T
        np.testing.assert_allclose(pixels[..., :2] / pixels[..., 2:], grid, atol=1e-2)
    assert not maps.metric


def test_the_mapper_takes_its_poses_and_focal_length(upstream: nn.Module, views: list[WindowView]) -> None:
    maps = DepthAnything(upstream, SIZE).reconstruct([view.encoded for view in views])
    focal = network_focals(views, maps)
    width = views[0].encoded.image.shape[1]
    assert 0.3 * width < focal[0] < 3 * width
    cameras = FocalLengths().after(views, focal).cameras(views, focal)
    poses = place_views(maps, cameras, RegistrationConfig())
    assert poses.ok.all(), poses.reasons
    np.testing.assert_allclose(poses.window_from_camera[0], np.eye(4), atol=1e-6)


def test_views_of_several_sizes_keep_their_pixels(upstream: nn.Module) -> None:
    adapter = DepthAnything(upstream, SIZE)
    rng = np.random.default_rng(1)
    wide, high = ((84, 112, 3), (112, 56, 3))
    frames = [
        Frame(i, str(size), rng.integers(0, 256, size, np.uint8)) for i, size in enumerate((wide, high))
    ]
    views = [WindowView.of(frame, adapter.encode(frame)) for frame in frames]
    maps = adapter.reconstruct([view.encoded for view in views])
    assert unusable_result(views, maps) == ""
    assert maps.intrinsics is not None
    for view, points, matrix in zip(views, maps.points_local, maps.intrinsics, strict=True):
        height, width = view.encoded.image.shape[:2]
        np.testing.assert_allclose(matrix[:2, 2], [width / 2, height / 2])
        pixels = points.double().numpy() @ matrix.T
        rows, columns = np.indices((height, width)) + 0.5
        np.testing.assert_allclose(pixels[..., 0] / pixels[..., 2], columns, atol=1e-2)
        np.testing.assert_allclose(pixels[..., 1] / pixels[..., 2], rows, atol=1e-2)


@pytest.mark.slow
def test_the_base_network_runs() -> None:
    require()
    adapter = DepthAnything(network("da3-base"), 56)
    walk = demo_sequence(1.0)
    views = [WindowView.of(walk[i], adapter.encode(walk[i])) for i in (0, 9)]
    maps = adapter.reconstruct([view.encoded for view in views])
    assert unusable_result(views, maps) == ""
    assert [tuple(points.shape) for points in maps.points_global] == [(42, 56, 3)] * 2


def test_one_view_is_a_window(upstream: nn.Module, views: list[WindowView]) -> None:
    maps = DepthAnything(upstream, SIZE).reconstruct([views[0].encoded])
    assert unusable_result(views[:1], maps) == ""


def test_the_metric_network_s_scale_is_that_of_upstreams_nested_network(
    upstream: nn.Module, metric: nn.Module, views: list[WindowView]
) -> None:
    from depth_anything_3.cfg import load_config
    from depth_anything_3.model.da3 import NestedDepthAnything3Net

    adapter, walk = DepthAnything(upstream, SIZE, metric=metric), demo_sequence(2.0)
    encoded = [adapter.encode(Frame(i, "a", walk[5 * i].image)) for i in range(4)]
    maps = adapter.reconstruct(encoded)
    plain = DepthAnything(upstream, SIZE).reconstruct([view.encoded for view in views])
    assert maps.metric
    assert not plain.metric
    config = load_config(str(files("depth_anything_3") / "configs" / "da3-small.yaml"))
    nested = NestedDepthAnything3Net(config, config).eval()
    nested.da3, nested.da3_metric = upstream, metric
    with torch.inference_mode():
        wanted = nested(
            torch.stack([view.tokens.pixels for view in encoded])[None], ref_view_strategy="first"
        )
    # upstream's is the least squares of all pixels, ours the median of ratios
    for found, unscaled in (
        (maps.points_local, plain.points_local),
        (maps.points_global, plain.points_global),
    ):
        ratio = torch.cat([(a / b)[..., 2].flatten() for a, b in zip(found, unscaled, strict=True)])
        assert float(ratio.median()) == pytest.approx(wanted.scale_factor, rel=0.05)
        assert float(ratio.std()) < 1e-3 * float(ratio.mean())


def test_known_metres_give_the_scale_in_spite_of_sky_and_wrong_pixels(
    upstream: nn.Module, views: list[WindowView]
) -> None:
    plain = DepthAnything(upstream, SIZE)
    maps = plain.reconstruct([view.encoded for view in views])
    assert maps.intrinsics is not None

    def with_metres(sky: float, calibrated: float = 1.0) -> Reconstruction:
        """A result with metric depth of three metres per unit.  calibrated: given / network's focal."""
        encoded = []
        for view, points, matrix in zip(views, maps.points_local, maps.intrinsics, strict=True):
            focal = (matrix[0, 0] + matrix[1, 1]) / 2
            depth = 3.0 * points[..., 2] * METRIC_FOCAL / focal
            depth[: round(len(depth) * sky)] = torch.nan
            depth[-len(depth) // 5 :] *= 7.0  # of another object, say
            given = None if calibrated == 1.0 else np.diag([calibrated, calibrated, 1.0]) @ matrix
            tokens = Tokens(view.encoded.tokens.pixels, depth)
            encoded.append(replace(view.encoded, intrinsics=given, tokens=tokens))
        return plain.reconstruct(encoded)

    found = with_metres(sky=0.4)
    assert found.metric
    torch.testing.assert_close(list(found.points_local), [3.0 * points for points in maps.points_local])
    torch.testing.assert_close(list(found.points_global), [3.0 * points for points in maps.points_global])
    assert unusable_result(views, found) == ""
    # depth in metres is proportional to the camera's true focal length
    calibrated = with_metres(sky=0.4, calibrated=1.1)
    torch.testing.assert_close(calibrated.points_local[0], 3.3 * maps.points_local[0])
    only_sky = with_metres(sky=1.0)
    assert not only_sky.metric
    torch.testing.assert_close(only_sky.points_local[0], maps.points_local[0])


@pytest.fixture(scope="module")
def folder(upstream: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("da3"), upstream, "da3-small")


def checkpoint(folder: Path, net: nn.Module, name: str) -> Path:
    """A checkpoint as upstream's `DepthAnything3.save_pretrained` names its tensors."""
    tensors = {f"model.{key}": value.contiguous() for key, value in net.state_dict().items()}
    write_safetensors(folder / "model.safetensors", tensors, {})
    (folder / "config.json").write_text(json.dumps({"model_name": name}))
    return folder


def test_a_metric_checkpoint_is_loaded_after_a_plus(
    folder: Path, metric: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(preset: str) -> nn.Module:
        return small_metric_network() if preset == "da3metric-large" else network(preset)

    monkeypatch.setattr(depth_anything, "network", small)
    (tmp_path / "metric").mkdir()
    second = checkpoint(tmp_path / "metric", metric, "da3metric-large")
    options = NetworkOptions(device="cpu", image_size=SIZE)
    image = demo_sequence(1.0)[0].image
    loaded = load_network(f"da3:{folder}+{second}", options)
    assert loaded.reconstruct([loaded.encode(Frame(0, "a", image))]).metric
    with pytest.raises(UserError, match=r"'da3-small'.*here da3 runs da3metric-large"):
        load_network(f"da3:{folder}+{folder}", options)
    with pytest.raises(UserError, match=r"da3:huge is unknown.*da3:small\+metric"):
        load_network(f"da3:{folder}+huge", options)
    plus = tmp_path / "a+b"
    plus.symlink_to(folder)
    plain = load_network(f"da3:{plus}", options)
    assert not plain.reconstruct([plain.encode(Frame(0, "a", image))]).metric


def test_a_checkpoint_is_loaded(folder: Path, upstream: nn.Module, views: list[WindowView]) -> None:
    loaded = load_network(f"da3:{folder}", NetworkOptions(device="cpu", image_size=SIZE))
    assert isinstance(loaded, DepthAnything)
    encoded = [view.encoded for view in views]
    found, wanted = (each.reconstruct(encoded) for each in (loaded, DepthAnything(upstream, SIZE)))
    torch.testing.assert_close(list(found.points_global), list(wanted.points_global))


def test_a_cpu_gets_smaller_images(folder: Path) -> None:
    network = load_network(f"da3:{folder}", NetworkOptions(device="cpu"))
    view = network.encode(Frame(0, "a", np.zeros((480, 640, 3), np.uint8)))
    assert view.image.shape == (210, 280, 3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["window", "all"])
def test_the_command_line_runs_it(
    mode: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights may not give an accepted map, but every step runs."""
    from fast3r_ros.cli import main

    gates = [f"--set=registration.{name}=0" for name in ("min_inlier_share", "min_view_share")]
    arguments = ["--max-views=8", "--size=112", "--device=cpu", f"--mode={mode}", *gates]
    output = tmp_path / "out"
    status = main(["reconstruct", "synthetic:4", f"--model=da3:{folder}", *arguments, f"--output={output}"])
    report = json.loads((output / "report.json").read_text())
    assert status == (0 if report["map_points"] else 1), capsys.readouterr().err
    assert report["complete"]
    assert report["mapper"]["windows"] + report["mapper"]["windows_rejected"] >= 1


def test_what_cannot_be_used_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"da3:huge is unknown; give da3:small, da3:base, da3:small\+metric or a folder"
    ):
        load_network("da3:huge", NetworkOptions(device="cpu"))
    with pytest.raises(UserError, match="too small"):
        load_network(f"da3:{folder}", NetworkOptions(device="cpu", image_size=8))
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "da3-giant"}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"'da3-giant'.*da3-small and da3-base"):
        load_network(f"da3:{tmp_path}", NetworkOptions(device="cpu"))
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "da3-base"}))
    with pytest.raises(UserError, match="does not fit"):
        load_network(f"da3:{tmp_path}", NetworkOptions(device="cpu"))


@pytest.mark.slow
def test_nothing_of_its_programs_is_imported(folder: Path) -> None:
    """NumPy 1, xFormers, Open3D … are required by its metadata, but not here."""
    code = f"""
import sys
from fast3r_ros.networks import NetworkOptions, load_network
before = set(sys.modules)
load_network("da3:{folder}", NetworkOptions(device="cpu"))
print(*{{name.partition(".")[0] for name in set(sys.modules) - before}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "depth_anything_3" in loaded
    assert not loaded & {"xformers", "open3d", "e3nn", "torchvision", "pycolmap", "moviepy", "evo", "gradio"}


def test_a_missing_package_is_reported_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "depth_anything_3", None)
    monkeypatch.delitem(sys.modules, "depth_anything_3.cfg", raising=False)
    with pytest.raises(UserError, match="pip install --no-deps depth-anything-3"):
        load_network("da3:small", NetworkOptions(device="cpu"))
