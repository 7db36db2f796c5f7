"""What a training run is made of, read from one YAML file with a section per dataclass below."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3RConfig

Range = tuple[float, float]


@dataclass(frozen=True)
class DataConfig:
    """The endless stream of synthetic rooms.

    width, height: of the images, multiples of 16.  horizontal_fov: degrees, drawn per scene.  camera_height:
    metres.  pitch, roll: largest tilt in degrees.  step, turn: metres and degrees between consecutive views
    of a walk, at full motion.  spread, angle: metres and degrees around the first view of unordered views, at
    full motion.  walks, look_arounds: shares of samples that are walks and turns on the spot; the rest are
    unordered views.  exposure: largest change of brightness per view; noise: standard deviation per pixel,
    both relative to white.  partial: share of views of which a rectangle is blanked and left out of the loss.
    samples: how many different samples there are; 0 means no end.  painted: share of the scenes that are
    painted rooms, see `room_scene`; the rest are plain rooms and corridors.
    """

    width: int = 224
    height: int = 160
    horizontal_fov: Range = (60.0, 80.0)
    camera_height: Range = (0.6, 1.8)
    pitch: float = 8.0
    roll: float = 4.0
    step: Range = (0.02, 0.3)
    turn: Range = (0.0, 8.0)
    spread: Range = (0.2, 1.5)
    angle: Range = (10.0, 60.0)
    walks: float = 0.6
    look_arounds: float = 0.1
    exposure: float = 0.1
    noise: float = 0.01
    partial: float = 0.0
    samples: int = 0
    painted: float = 0.0


@dataclass(frozen=True)
class RecordedConfig:
    """A recorded dataset that is mixed into the stream.

    dataset: a format of `datasets`; root: its folder.  share: of all samples.  window: the views
    of a sample are drawn from so many successive frames.
    """

    dataset: str = ""
    root: str = ""
    share: float = 0.1
    window: int = 100


@dataclass(frozen=True)
class Stage:
    """From this step on, view counts are drawn from `views` and motion is scaled by `motion`.

    views_per_step: replaces that of the run, if not 0.  Early gradients agree so well from sample to sample
    that small batches learn more in the same time.
    """

    from_step: int = 0
    views: tuple[int, ...] = (2,)
    motion: float = 1.0
    views_per_step: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay; the paper's values are the defaults.

    kind: adamw, or muon, which makes the steps of the transformers' matrices orthogonal (Jordan and others,
    2024; the rest goes on with AdamW) and needs fewer steps from nothing.  decay_vectors: whether biases and
    norms decay, too, as in the release.  head_rate: learning rate of the heads relative to the rest.  ema:
    decay of the averaged weights that are evaluated and exported; 0 keeps none.  clip: largest norm of the
    gradient.
    """

    kind: str = "adamw"
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-6
    betas: Range = (0.9, 0.95)
    weight_decay: float = 0.05
    decay_vectors: bool = True
    warmup_steps: int = 1000
    clip: float = 1.0
    head_rate: float = 1.0
    ema: float = 0.999


@dataclass(frozen=True)
class RunConfig:
    """How the run goes.

    views_per_step: views in one optimiser step over all processes; a step has views_per_step // V samples of
    V views.  accumulation: backward passes per step.  head_views: views per sample that heads and loss look
    at, drawn at random, always with view 0; 0 means all.  precision: float32 or bfloat16 (autocast).
    recompute: gradient checkpointing.  parallel: ddp, fsdp or deepspeed when started by torchrun.
    attention: see `Fast3R.set_attention`.  matching: weight of the auxiliary loss of `training.matching`, 0
    for the paper's loss alone.  initial_weights: a model to start from, see `Fast3R.from_pretrained`;
    initial_dust3r: a DUSt3R file to take the encoder and the global head from, as the authors did.
    *_every: steps between logs, checkpoints and evaluations.
    """

    steps: int = 174_000
    views_per_step: int = 64
    accumulation: int = 1
    head_views: int = 0
    precision: str = "bfloat16"
    recompute: bool = False
    parallel: str = "ddp"
    attention: str = "auto"
    matching: float = 0.0
    log_every: int = 10
    checkpoint_every: int = 500
    evaluate_every: int = 1000
    evaluate_scenes: int = 16
    initial_weights: str = ""
    initial_dust3r: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """A whole run: a pure function of this, up to rounding, gives the weights."""

    model: Fast3RConfig
    data: DataConfig = field(default_factory=DataConfig)
    recorded: tuple[RecordedConfig, ...] = ()
    curriculum: tuple[Stage, ...] = (Stage(),)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0

    def views_per_step(self, step: int) -> int:
        """Views in the global batch of a step."""
        return self.stage(step).views_per_step or self.run.views_per_step

    def stage(self, step: int) -> Stage:
        """The stage of the curriculum that a step belongs to."""
        return [stage for stage in self.curriculum if stage.from_step <= step][-1]


def read_config(path: str | Path) -> TrainConfig:
    """Read a training configuration.  Raises UserError naming the file and the key that is wrong."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{path} has no section `model`; see config/train/demo.yaml")
    return config_from_dict(content, str(path))


def config_from_dict(content: dict[str, Any], source: str) -> TrainConfig:
    """The configuration from the YAML's content; `source` names it in errors.  Raises UserError."""
    unknown = set(content) - {item.name for item in dataclasses.fields(TrainConfig)}
    if unknown:
        raise UserError(f"{source} has unknown sections {', '.join(sorted(unknown))}")
    stages = tuple(_section(Stage, item, source, "curriculum") for item in content.get("curriculum", [{}]))
    config = TrainConfig(
        model=Fast3RConfig.from_dict(content["model"], f"{source}: model"),
        recorded=tuple(
            _section(RecordedConfig, item, source, "recorded") for item in content.get("recorded", [])
        ),
        data=_section(DataConfig, content.get("data", {}), source, "data"),
        curriculum=stages,
        optimizer=_section(OptimizerConfig, content.get("optimizer", {}), source, "optimizer"),
        run=_section(RunConfig, content.get("run", {}), source, "run"),
        seed=int(content.get("seed", 0)),
    )
    _check(config, source)
    return config


def _section(kind: type, content: Any, source: str, name: str) -> Any:
    """One dataclass from one YAML section; lists become tuples and numbers take the default's type."""
    if not isinstance(content, dict):
        raise UserError(f"{source}: {name} is {content!r}, expected a mapping")
    defaults = {item.name: getattr(kind(), item.name) for item in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in defaults:
            raise UserError(f"{source}: {name}.{key} is not known; known are {', '.join(defaults)}")
        try:
            values[key] = _like(value, defaults[key])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{source}: {name}.{key} is {value!r}, expected a value like {defaults[key]!r}"
            ) from error
    return kind(**values)


def _like(value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        return tuple(type(default[0])(item) for item in value)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(default, int) and int(value) != float(value):
        raise ValueError
    return type(default)(value)


def _check(config: TrainConfig, source: str) -> None:
    data, run = config.data, config.run
    rules = [
        (data.width % 16 == 0 and data.height % 16 == 0, "data.width and height must be multiples of 16"),
        (config.curriculum[0].from_step == 0, "the first stage of the curriculum must start from_step 0"),
        (run.precision in ("float32", "bfloat16"), "run.precision must be float32 or bfloat16"),
        (run.parallel in ("ddp", "fsdp", "deepspeed"), "run.parallel must be ddp, fsdp or deepspeed"),
        (run.parallel != "fsdp" or not config.optimizer.ema, "optimizer.ema must be 0 for run.parallel fsdp"),
        (config.optimizer.kind in ("adamw", "muon"), "optimizer.kind must be adamw or muon"),
        (
            run.parallel == "ddp" or (config.optimizer.kind == "adamw" and not run.matching),
            "optimizer.kind muon and run.matching need run.parallel ddp",
        ),
        (not (run.matching and run.recompute), "run.matching does not go with run.recompute"),
        (run.steps > 0 and run.accumulation > 0, "run.steps and run.accumulation must be positive"),
        (
            sum(item.share for item in config.recorded) <= 1,
            "the shares of recorded datasets exceed 1 together",
        ),
        (all(item.share > 0 for item in config.recorded), "recorded.share must be greater than 0"),
    ]
    for stage in config.curriculum:
        largest = max(stage.views, default=0)
        rules.append((min(stage.views, default=0) >= 1, "curriculum views must be 1 or more"))
        rules.append(
            (
                largest * run.accumulation <= (stage.views_per_step or run.views_per_step),
                f"views_per_step is {stage.views_per_step or run.views_per_step}, "
                f"less than {run.accumulation} x {largest} views",
            )
        )
    for good, message in rules:
        if not good:
            raise UserError(f"{source}: {message}")
