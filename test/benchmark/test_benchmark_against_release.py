"""Our side of the comparison with the official release; the other side needs a checkout of the release."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

KERNEL = "flash_attn_3"
FOLDER = Path(__file__).resolve().parents[2] / "benchmark"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("against_release")


def load_script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def options() -> argparse.Namespace:
    """The smallest comparison that has every part."""
    return argparse.Namespace(
        release=None,
        release_attention="pytorch_naive",
        network="base",
        device="cpu",
        dtype="float32",
        threads=1,
        views=3,
        size=(32, 48),
        slide=1,
        many=5,
        rounds=2,
        keep=None,
    )


class ScriptedWorker:
    """Returns at once: our full pass takes half of the release's, slid windows 0.3 of that, many 0.6."""

    seconds: ClassVar = {
        "release": {"full": 4.0, "many": 100.0},
        "ours": {"full": 2.0, "slide": 1.2, "stream": 0.4, "many": 60.0},
    }

    def __init__(self, arguments: argparse.Namespace, implementation: str, results: Path) -> None:
        self.name, self.results = implementation, results
        self.log: list[str] = arguments.log

    def run(self, task: str) -> dict[str, Any]:
        self.log.append(f"{self.name} {task}")
        if task == "save":
            points = {
                "global_0": np.ones(3),
                "slide_global_0": np.ones(3),
                "stream_global_0": np.full(3, 1.5),
            }
            with self.results.open("wb") as file:
                np.savez(file, **(points if self.name == "ours" else {"global_0": np.ones(3)}))
            return {"saved": 1}
        seconds = self.seconds[self.name][task]
        peak = 3 if self.name == "ours" else 10
        return {"seconds": seconds, "processor_seconds": seconds, "peak_bytes": peak, "kernel": KERNEL}

    def stop(self) -> None:
        self.log.append(f"{self.name} stop")


@pytest.fixture
def scripted(
    script: ModuleType, options: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> argparse.Namespace:
    monkeypatch.setattr(script, "Worker", ScriptedWorker)
    monkeypatch.setattr(script, "_machine", lambda arguments: {"gpu": "NVIDIA H100 80GB HBM3"})
    options.network = "paper"
    options.log, options.keep = [], tmp_path / "kept" / "against.json"
    return options


@pytest.mark.slow
def test_our_worker_runs_every_pass_and_the_slid_window_is_the_full_one(
    script: ModuleType, options: argparse.Namespace, tmp_path: Path
) -> None:
    file = tmp_path / "ours.npz"
    worker = script.Worker(options, "ours", file)
    answers = [worker.run(task) for task in ("full", "slide", "stream", "many")]
    assert worker.run("save")["saved"] > 0
    worker.stop()
    for answer in answers:
        assert answer["seconds"] > 0
        assert answer["peak_bytes"] > 0
    with np.load(file) as results:
        assert results["global_2"].shape == (1, 32, 48, 3)
        streamed = {name for name in results.files if name.startswith("stream_")}
    assert streamed == {"stream_global_2", "stream_local_2"}  # of the new view alone
    assert script.difference_to_full(file, "slide") < 1e-4
    assert 0 < script.difference_to_full(file, "stream") < 10  # the omitted part is visible, and nothing else


def test_a_worker_gives_its_memory_back_before_it_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Both workers share a GPU: memory cached by one's allocator is not available to the other."""
    worker = load_script("against_release_worker")
    told: list[str] = []

    def scripted() -> dict[str, torch.Tensor]:
        told.append("task")
        return worker.measured(lambda: {"global_0": torch.ones(3)}, {"device": "cpu"})

    def failing() -> dict[str, torch.Tensor]:
        told.append("task")
        raise torch.OutOfMemoryError

    class Answers(io.StringIO):
        def write(self, text: str) -> int:
            if "seconds" in text or "failed" in text:
                told.append("answer")
            return super().write(text)

    tasks = {"touch": scripted, "full": scripted, "many": failing}
    monkeypatch.setattr(worker, "our_tasks", lambda options, images: tasks)
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(worker.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(worker.torch.cuda, "empty_cache", lambda: told.append("empty"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("full\nmany\nfull\n"))
    monkeypatch.setattr(sys, "stdout", Answers())
    options = {"implementation": "ours", "device": "cpu", "threads": 1, "size": [16, 16], "views": 1}
    monkeypatch.setattr(sys, "argv", ["worker", json.dumps(options)])
    worker.main()
    assert told == ["task", "empty"] + 3 * ["task", "empty", "answer"]


RELEASE = """
from fast3r.dust3r.datasets.base.base_stereo_view_dataset import view_name
from fast3r.utils import pylogger
import torch

log = pylogger.RankedLogger(__name__, rank_zero_only=True)


class Fast3R(torch.nn.Module):
    def __init__(self, encoder_args, decoder_args, head_args):
        super().__init__()
        log.info(view_name("built"))
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.decoder = torch.nn.Module()
        self.decoder.image_idx_emb = torch.zeros(4, 8)

    def forward(self, views):
        names = ("pts3d_in_other_view", "conf", "pts3d_local")
        return [{name: self.weight * view["img"].mean() for name in names} for view in views]
"""


def test_the_release_runs_without_its_training_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those of its packages are imported that its network needs."""
    models = tmp_path / "fast3r" / "models"
    models.mkdir(parents=True)
    (models / "fast3r.py").write_text(RELEASE)
    (tmp_path / "fast3r" / "utils").mkdir()
    (tmp_path / "fast3r" / "utils" / "__init__.py").write_text("import hydra_that_is_not_installed")
    monkeypatch.setattr(sys, "path", list(sys.path))
    worker = load_script("against_release_worker")
    options = {"release": str(tmp_path), "network": "base", "attention": "pytorch_naive", "device": "cpu"}
    images = [torch.ones(1, 3, 16, 16)] * 2
    try:
        tasks = worker.release_tasks({**options, "dtype": "float32", "many": 5}, images)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "fast3r"]:
            del sys.modules[name]
    assert set(tasks["full"]()) >= {"global_0", "confidence_1", "local_1", "seconds"}
    assert set(tasks["many"]()) == {"seconds", "processor_seconds"}


def test_a_comparison_holds_every_ratio_and_target(
    script: ModuleType, scripted: argparse.Namespace, tmp_path: Path
) -> None:
    document = script.measure(scripted, tmp_path)
    assert document["ratios_of_medians"] == pytest.approx(
        {
            "full_to_release": 0.5,
            "slide_to_release_full": 0.3,
            "slide_to_our_full": 0.6,
            "stream_to_release_full": 0.1,
            "stream_to_our_full": 0.2,
        }
    )
    assert {name: each["measured"] for name, each in document["targets"].items()} == pytest.approx(
        {
            "full_to_release": 0.5,
            "peak_to_release": 0.3,
            "slide_to_release_full": 0.3,
            "many_to_release": 0.6,
        }
    )
    assert all(each["holds"] for each in document["targets"].values())
    assert not any("stream" in name for name in document["targets"])  # it is not exact
    assert {"stream_to_release_full", "stream_to_our_full"} <= set(document["not_exact"])
    assert document["difference_slide_to_full"] == 0
    assert document["difference_stream_to_full"] == pytest.approx(0.5)
    assert document["setting"]["dtype"] == "float32"
    assert json.loads(scripted.keep.read_text()) == document
    assert len(document["seconds_all"]) == 2


def test_an_aborted_comparison_leaves_its_results_so_far(
    script: ModuleType,
    scripted: argparse.Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = ScriptedWorker.run

    def cut_off(self: ScriptedWorker, task: str) -> dict[str, Any]:
        if (self.name, task) == ("release", "many"):
            raise SystemExit("time is up")
        return run(self, task)

    monkeypatch.setattr(ScriptedWorker, "run", cut_off)
    with pytest.raises(SystemExit):
        script.measure(scripted, tmp_path)
    kept = json.loads(scripted.keep.read_text())
    assert kept["unfinished"]
    assert kept["targets"]["slide_to_release_full"]["holds"]
    assert kept["targets"]["many_to_release"]["holds"] is None
    assert kept["many"]["ours"]["seconds"] == 60
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "peak_to_release 0.3 (at most 0.5)"
    assert "slide_to_release_full 0.3 (at most 0.52)" in told[2]
    assert "stream_to_release_full 0.1," in told[2]  # no target
    assert told[-1] == "many views, ours: 60.0 s"


def test_many_views_are_measured_alone_or_last(
    script: ModuleType, scripted: argparse.Namespace, tmp_path: Path
) -> None:
    script.measure(scripted, tmp_path)
    many = [place for place, told in enumerate(scripted.log) if "many" in told]
    assert many == [len(scripted.log) - 4, len(scripted.log) - 3]  # then both stop
    scripted.log.clear()
    scripted.rounds = 0
    document = script.measure(scripted, tmp_path)
    assert scripted.log == ["ours many", "release many", "release stop", "ours stop"]
    holds = {name: each["holds"] for name, each in document["targets"].items()}
    assert holds.pop("many_to_release")
    assert set(holds.values()) == {None}


@pytest.mark.parametrize(("device", "dtype"), [("cuda", "float16"), ("cpu", "float32")])
def test_the_dtype_is_the_device_s_own(
    script: ModuleType, device: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["against_release.py", "--release", "checkout", "--device", device]
    monkeypatch.setattr(sys, "argv", command)
    assert script.parsed().dtype == dtype
    monkeypatch.setattr(sys, "argv", [*command, "--dtype", "bfloat16"])
    assert script.parsed().dtype == "bfloat16"


@pytest.mark.parametrize("options", [["--rounds", "0"], ["--views", "2", "--slide", "2"]])
def test_an_empty_comparison_is_rejected(
    script: ModuleType, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["against_release.py", "--release", "checkout", *options])
    with pytest.raises(SystemExit):
        script.parsed()


RATIOS = {"full_to_release": 0.5, "slide_to_release_full": 0.6, "slide_to_our_full": 1.2}


@pytest.mark.parametrize(
    ("gpu", "kernel", "network", "holds"),
    [
        ("NVIDIA H100 PCIe", "flash_attn_3", "paper", (True, False, False, True)),
        ("NVIDIA H100 PCIe", "flash_attn_3", "large", (True, False, False, None)),
        ("NVIDIA H100 PCIe", "flash", "paper", (None, None, False, None)),
        ("NVIDIA A100-SXM4-80GB", "flash_attn", "paper", (True, True, False, True)),
        ("NVIDIA GeForce RTX 4090", "flash_attn", "paper", (None, None, None, None)),
    ],
)
def test_targets_are_of_a_card_and_a_kernel(
    script: ModuleType, gpu: str, kernel: str, network: str, holds: tuple[bool | None, ...]
) -> None:
    many = {"ours": {"seconds": 6.0, "kernel": kernel}, "release": {"seconds": 12.0}}
    document = {
        "machine": {"gpu": gpu},
        "setting": {"network": network},
        "kernel": kernel,
        "ratios_of_medians": RATIOS,
        "peak_to_release": 0.6,
        "many": many,
    }
    assert tuple(each["holds"] for each in script.targets(document).values()) == holds


def test_targets_without_a_measurement_neither_hold_nor_fail(script: ModuleType) -> None:
    found = script.targets({"machine": {"gpu": "H100"}, "setting": {"network": "paper"}})
    assert {each["holds"] for each in found.values()} == {None}


def test_a_pass_that_only_we_can_hold_counts_as_reached(script: ModuleType) -> None:
    time, failed = {"seconds": 6.0}, {"failed": "out of memory"}
    assert script._many_ratio({"ours": time, "release": {"seconds": 12.0}}) == pytest.approx(0.5)
    assert script._many_ratio({"ours": time, "release": failed}) == 0.0
    assert script._many_ratio({"ours": failed, "release": time}) == float("inf")
    assert script._many_ratio({"ours": failed, "release": failed}) is None
    assert script._many_ratio({"ours": time}) is None
    assert script._many_ratio({}) is None
