"""The configuration of a training run, read from one YAML file with a section per dataclass below."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3RConfig
from fast3r_ros.model.attention import ATTENTION_NAMES
from fast3r_ros.settings import build, parameter, read_yaml

_COUNT = (0, 2**31 - 1)
_PIXELS_PER_STEP = 2**31


@dataclass(frozen=True)
class DataConfig:
    """The endless stream of synthetic rooms.

    width, height: of the images, multiples of 16.  horizontal_fov: degrees, drawn per scene.  camera_height:
    metres.  pitch, roll: largest tilt in degrees.  step, turn: metres and degrees between consecutive views
    of a walk, at full motion.  spread, angle: metres and degrees around the first view of unordered views, at
    full motion.  walks, look_arounds: shares of samples that are walks and pure rotations; the rest are
    unordered views.  exposure: largest change of brightness per view; noise: standard deviation per pixel,
    both relative to white.  partial: share of views with one blanked rectangle, which the loss ignores.
    samples: number of different samples; 0 means no limit.  painted: share of scenes that are painted rooms,
    see `room_scene`; the rest are plain rooms and corridors.
    """

    width: int = parameter(224, range=(16, 4096))
    height: int = parameter(160, range=(16, 4096))
    horizontal_fov: tuple[float, float] = parameter((60.0, 80.0), range=(1, 170))
    camera_height: tuple[float, float] = parameter((0.6, 1.8), range=(0.01, 100))
    pitch: float = parameter(8.0, range=(0, 90))
    roll: float = parameter(4.0, range=(0, 180))
    step: tuple[float, float] = parameter((0.02, 0.3), range=(0, 100))
    turn: tuple[float, float] = parameter((0.0, 8.0), range=(0, 180))
    spread: tuple[float, float] = parameter((0.2, 1.5), range=(0, 100))
    angle: tuple[float, float] = parameter((10.0, 60.0), range=(0, 180))
    walks: float = parameter(0.6, range=(0, 1))
    look_arounds: float = parameter(0.1, range=(0, 1))
    exposure: float = parameter(0.1, range=(0, 1))
    noise: float = parameter(0.01, range=(0, 1))
    partial: float = parameter(0.0, range=(0, 1))
    samples: int = parameter(0, range=_COUNT)
    painted: float = parameter(0.0, range=(0, 1))

    def __post_init__(self) -> None:
        """Raises UserError for an invalid combination."""
        if self.width % 16 or self.height % 16:
            raise UserError(f"width and height must be multiples of 16, not {self.width} and {self.height}")
        for name in ("horizontal_fov", "camera_height", "step", "turn", "spread", "angle"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"{name} is [{low:g}, {high:g}]; the smaller value must come first")


@dataclass(frozen=True)
class RecordedConfig:
    """A recorded dataset that is mixed into the stream.

    dataset: a format of `datasets`; root: its folder.  share: of all samples.  window: the views of a sample
    are drawn from this many successive frames.
    """

    dataset: str = ""
    root: str = ""
    share: float = parameter(0.1, range=(1e-9, 1))
    window: int = parameter(100, range=(1, 10**6))


@dataclass(frozen=True)
class Stage:
    """From `from_step` on, view counts are drawn from `views` and motion is scaled by `motion`.

    views_per_step: replaces that of the run, if not 0.  Early gradients of different samples agree so well
    that small batches learn more in the same time.
    """

    from_step: int = parameter(0, range=_COUNT)
    views: tuple[int, ...] = parameter((2,), range=(1, 1500))
    motion: float = parameter(1.0, range=(0, 10))
    views_per_step: int = parameter(0, range=(0, 10**6))


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay; the paper's values are the defaults.

    kind: adamw, or muon, which orthogonalises the steps of the transformers' matrices (Jordan and others,
    2024; the other parameters use AdamW) and needs fewer steps from random weights.  decay_vectors: whether
    biases and norms decay, too, as in the release.  head_rate: learning rate of the heads relative to the
    rest.  ema: decay of the averaged weights, which are evaluated and exported; 0 disables averaging.  clip:
    largest norm of the gradient.
    """

    kind: str = parameter("adamw", choices=("adamw", "muon"))
    learning_rate: float = parameter(1e-4, range=(0, 10))
    final_learning_rate: float = parameter(1e-6, range=(0, 10))
    betas: tuple[float, float] = parameter((0.9, 0.95), range=(0, 1 - 1e-9))
    weight_decay: float = parameter(0.05, range=(0, 10))
    decay_vectors: bool = True
    warmup_steps: int = parameter(1000, range=_COUNT)
    clip: float = parameter(1.0, range=(1e-9, math.inf))
    head_rate: float = parameter(1.0, range=(0, 1000))
    ema: float = parameter(0.999, range=(0, 1 - 1e-9))


@dataclass(frozen=True)
class RunConfig:
    """The run: batch, precision, parallelism and intervals.

    views_per_step: views in one optimiser step over all processes; a step has views_per_step // V samples of
    V views.  accumulation: backward passes per step.  head_views: views per sample for heads and loss, drawn
    at random, always with view 0; 0 means all.  precision: float32 or bfloat16 (autocast).  recompute:
    gradient checkpointing.  parallel: ddp, fsdp or deepspeed when started by torchrun.  attention: see
    `Fast3R.set_attention`.  matching: weight of the auxiliary loss of `training.matching`, 0 for the paper's
    loss alone.  initial_weights: a model to start from, see `Fast3R.from_pretrained`; initial_dust3r: a
    DUSt3R file to take the encoder and the global head from, as the authors did.  *_every: steps between
    logs, checkpoints and evaluations.
    """

    steps: int = parameter(174_000, range=(1, _COUNT[1]))
    views_per_step: int = parameter(64, range=(1, 10**6))
    accumulation: int = parameter(1, range=(1, 10**4))
    head_views: int = parameter(0, range=(0, 1500))
    precision: str = parameter("bfloat16", choices=("float32", "bfloat16"))
    recompute: bool = False
    parallel: str = parameter("ddp", choices=("ddp", "fsdp", "deepspeed"))
    attention: str = parameter("auto", choices=ATTENTION_NAMES)
    matching: float = parameter(0.0, range=(0, 1000))
    log_every: int = parameter(10, range=(1, _COUNT[1]))
    checkpoint_every: int = parameter(500, range=(1, _COUNT[1]))
    evaluate_every: int = parameter(1000, range=(1, _COUNT[1]))
    evaluate_scenes: int = parameter(16, range=(1, 10**5))
    initial_weights: str = ""
    initial_dust3r: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """A whole run; it determines the weights up to rounding."""

    model: Fast3RConfig
    data: DataConfig = field(default_factory=DataConfig)
    recorded: tuple[RecordedConfig, ...] = ()
    curriculum: tuple[Stage, ...] = (Stage(),)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = parameter(0, range=_COUNT)

    def __post_init__(self) -> None:
        """Raises UserError for an invalid combination."""
        _check(self)

    def views_per_step(self, step: int) -> int:
        """Views in the global batch of a step."""
        return self.stage(step).views_per_step or self.run.views_per_step

    def stage(self, step: int) -> Stage:
        """The stage of the curriculum that a step belongs to."""
        return [stage for stage in self.curriculum if stage.from_step <= step][-1]


def read_config(path: str | Path) -> TrainConfig:
    """Read a training configuration.  Raises UserError with the file and the invalid key."""
    content = read_yaml(path)
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{path} has no section `model`; see config/train/demo.yaml")
    return config_from_dict(content, str(path))


def config_from_dict(content: dict[str, Any], source: str) -> TrainConfig:
    """The configuration from the YAML's content; `source` names it in errors.  Raises UserError."""
    model = Fast3RConfig.from_dict(content["model"], f"{source}: model")
    config = build(TrainConfig, {**content, "model": model}, f"{source}: ")
    assert isinstance(config, TrainConfig)
    return config


def _check(config: TrainConfig) -> None:
    """The rules between sections."""
    data, run, optimizer, stages = config.data, config.run, config.optimizer, config.curriculum
    starts = [stage.from_step for stage in stages]
    rules = [
        (bool(stages) and starts[0] == 0, "the first stage of the curriculum must start from_step 0"),
        (starts == sorted(set(starts)), "the stages of the curriculum must have increasing from_step"),
        (all(stage.views for stage in stages), "each stage of the curriculum needs views, such as [2, 4]"),
        (data.walks + data.look_arounds <= 1 + 1e-9, "data.walks + data.look_arounds exceeds 1"),
        (run.parallel != "fsdp" or not optimizer.ema, "optimizer.ema must be 0 for run.parallel fsdp"),
        (
            run.parallel == "ddp" or (optimizer.kind == "adamw" and not run.matching),
            "optimizer.kind muon and run.matching need run.parallel ddp",
        ),
        (not (run.matching and run.recompute), "run.matching cannot be combined with run.recompute"),
        (
            sum(item.share for item in config.recorded) <= 1 + 1e-9,
            "the sum of the shares of recorded datasets exceeds 1",
        ),
    ]
    for stage in stages:
        views, wanted = stage.views_per_step or run.views_per_step, max(stage.views, default=0)
        rules += [
            (
                wanted * run.accumulation <= views,
                f"views_per_step is {views}, less than {run.accumulation} x {wanted} views",
            ),
            (
                views * data.width * data.height <= _PIXELS_PER_STEP,
                f"a step of {views} views of {data.width}x{data.height} pixels does not fit into any memory",
            ),
        ]
    for good, message in rules:
        if not good:
            raise UserError(message)
