"""The training loop, its optimisers and their learning rate."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fast3r_ros.errors import UserError
from fast3r_ros.files import machine_memory, one_line, writable
from fast3r_ros.model import Fast3R
from fast3r_ros.model.checkpoint import check_finite, initialise_from_dust3r
from fast3r_ros.training import zero
from fast3r_ros.training.data_parallel import forward_backward, full_state, load_full_state, update, wrap
from fast3r_ros.training.objective import Objective, initialise
from fast3r_ros.training.processes import Process
from fast3r_ros.training.state import Average, load_state, save_state
from fast3r_ros.training.stream import training_batch, view_count
from fast3r_ros.training.training_config import OptimizerConfig, TrainConfig
from fast3r_ros.training.validation import validate


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then cosine to the final rate at `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = min((step - config.warmup_steps) / max(steps - config.warmup_steps, 1), 1.0)
    swing = 0.5 * (1 + math.cos(math.pi * done))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * swing


def make_optimizers(objective: nn.Module, options: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the transformers' matrices and AdamW for the rest.

    Each parameter group has a key `relative_rate`: its learning rate relative to that of `learning_rate`.
    Muon's steps are scaled to the size of AdamW's, so that one rate serves both (Liu and others, Muon is
    Scalable for LLM Training, 2025).  Raises UserError when this PyTorch has no Muon.
    """
    if options.kind == "muon" and not hasattr(torch.optim, "Muon"):
        raise UserError(f"PyTorch {torch.__version__} has no Muon; use optimizer.kind adamw or update it")
    turned: list[nn.Parameter] = []
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        heads = "downstream_head" in name
        if not parameter.requires_grad:
            continue
        if options.kind == "muon" and parameter.ndim == 2 and not heads:
            turned.append(parameter)
        else:
            groups.setdefault((heads, parameter.ndim > 1), []).append(parameter)
    chosen: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [_group(members, options, *kind) for kind, members in groups.items()],
            lr=options.learning_rate,
            betas=options.betas,
            fused=True,
        )
    ]
    if turned:
        chosen.append(
            torch.optim.Muon(
                [{"params": turned, "relative_rate": 1.0}],
                lr=options.learning_rate,
                weight_decay=options.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return chosen


def _group(
    members: list[nn.Parameter], options: OptimizerConfig, heads: bool, matrices: bool
) -> dict[str, Any]:
    """One group of AdamW: heads have their own rate, and vectors decay only if configured."""
    return {
        "params": members,
        "weight_decay": options.weight_decay if matrices or options.decay_vectors else 0.0,
        "relative_rate": options.head_rate if heads else 1.0,
    }


_BYTES_PER_WEIGHT = 12  # with a GPU: the weights, their average and a copy for saving
_log = logging.getLogger(__name__)


@dataclass
class TrainingRun:
    """The mutable state of training: the wrapped objective, its optimisers, the averaged weights."""

    objective: nn.Module
    network: Fast3R
    optimizers: list[torch.optim.Optimizer]
    average: Average | None
    step: int = 0


def train(
    config: TrainConfig, output: Path, process: Process, resume: bool = False, minutes: float = math.inf
) -> dict[str, float]:
    """Train until `config.run.steps` or for `minutes`, and export the (averaged) weights to output/model.

    output receives state-*.pt, log.jsonl (one line per logged step), tensorboard/, model/.  Returns the last
    evaluation.  Raises UserError when a state cannot be read, or when output/model exists without a run's
    log: the export would replace a model of the user.
    """
    if (output / "model").exists() and not (output / "log.jsonl").is_file():
        raise UserError(
            f"{output / 'model'} is not from a training run and would be replaced; choose another folder"
        )
    run = _start(config, process)
    if resume:
        _resume(run, output, process)
    metrics: dict[str, float] = {}
    deadline = time.monotonic() + 60 * minutes
    progress = tqdm(total=config.run.steps, initial=run.step, disable=process.rank != 0, mininterval=2)
    with closing(_Log(output, process.rank == 0)) as log, progress as bar:
        began = run.step
        while run.step < config.run.steps and (run.step == began or time.monotonic() < deadline):
            report = train_step(run, config, process)
            bar.update()
            if run.step % config.run.log_every == 0:
                bar.set_postfix(loss=f"{report['loss']:.3f}", error=f"{report['error_global']:.3f}")
                log.write(run.step, report)
            last = run.step == config.run.steps or time.monotonic() >= deadline
            if run.step % config.run.checkpoint_every == 0 or last:
                _save(run, config, output, process)
            if run.step % config.run.evaluate_every == 0 or last:
                metrics = _evaluate(run, config, process)
                log.write(run.step, metrics)
        if began >= config.run.steps:  # a kill after the last state may have left the export of an older one
            weights = _exported_weights(run)
            if process.rank == 0:
                export(config, weights, output / "model")
            metrics = _evaluate(run, config, process)
            log.write(run.step, metrics)
    return metrics


def train_step(run: TrainingRun, config: TrainConfig, process: Process) -> dict[str, float]:
    """One optimiser step over the global batch of `run.step`, which advances; returns values to log."""
    rate = learning_rate(config.optimizer, run.step, config.run.steps)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["relative_rate"]
    passes = config.run.accumulation
    totals = torch.zeros(4, device=process.device)
    run.objective.train()
    for number in range(passes):
        batch = training_batch(
            config, run.step, process.device, process.rank * passes + number, process.count * passes
        )
        chosen = _chosen_views(config, run.step, batch.images.shape[1])
        last = number == passes - 1
        totals += forward_backward(run.objective, batch, chosen, config.run, last) / passes
    norm = update(run.objective, run.optimizers, config.optimizer.clip)
    run.step += 1
    if run.average is not None:
        run.average.update(run.network, run.step)
    names = ("loss", "error_global", "error_local", "matching")
    return {
        **dict(zip(names, process.mean(totals).tolist(), strict=True)),
        "views": float(view_count(config, run.step - 1)),
        "learning_rate": rate,
        "gradient_norm": norm,
    }


def _start(config: TrainConfig, process: Process) -> TrainingRun:
    needed = _BYTES_PER_WEIGHT * config.model.weights
    if needed > machine_memory():
        raise UserError(
            f"the model has about {config.model.weights:.2g} weights, "
            f"whose training takes {needed / 1e9:.0f} GB; this machine has {machine_memory() / 1e9:.0f} GB"
        )
    network = Fast3R(config.model)
    if config.run.initial_weights:
        _continue_from(network, config.run.initial_weights)
    else:
        initialise(network, config.seed)
        if config.run.initial_dust3r:
            initialise_from_dust3r(network, Path(config.run.initial_dust3r))
    for name, parameter in network.named_parameters():
        if "refinenet4.resConfUnit1" in name:  # part of the checkpoint layout, unused in the forward pass
            parameter.requires_grad_(False)
    network.set_attention(config.run.attention)
    network.set_recompute(config.run.recompute)
    average = Average(network, config.optimizer.ema) if config.optimizer.ema else None
    objective = wrap(Objective(network, config.run.matching).to(process.device), process, config.run.parallel)
    optimizers = make_optimizers(objective, config.optimizer)
    if config.run.parallel == "deepspeed":
        objective = zero.wrap(objective, optimizers[0], config, process)
    return TrainingRun(objective, network, optimizers, average)


def _continue_from(network: Fast3R, weights: str) -> None:
    """Load the weights of a model with the same layers; only its image size may differ."""
    try:
        network.load_state_dict(Fast3R.from_pretrained(weights).state_dict())
    except RuntimeError as error:
        difference = str(error).splitlines()[1].strip()
        raise UserError(
            f"run.initial_weights {weights} has different layers than the section model: {difference}"
        ) from error


def _resume(run: TrainingRun, output: Path, process: Process) -> None:
    state = load_state(output)
    if state is None:
        _log.info("nothing to resume in %s; starting from step 0", output)
        return
    source = f"the state of step {state['step']} in {output}"
    try:
        check_finite(state["network"], source)
        if zero.is_engine(run.objective):
            zero.load(run.objective, output, state["step"])
        else:
            load_full_state(run.objective, run.optimizers, state)
        if run.average is not None:
            run.average.load(state["average"], process.device)
    except UserError:
        raise
    except Exception as error:  # PyTorch raises many types for missing, misshapen or invalid entries
        raise UserError(
            f"{source} does not fit this configuration: {one_line(error)}; use the one that wrote it, "
            "or delete the state to resume from an older one"
        ) from error
    run.step = state["step"]


def _save(run: TrainingRun, config: TrainConfig, output: Path, process: Process) -> None:
    if zero.is_engine(run.objective):
        zero.save(run.objective, output, run.step)
    content = full_state(run.objective, run.optimizers)
    if process.rank == 0:
        average = None if run.average is None else run.average.tensors
        try:
            save_state(output, run.step, {**content, "average": average})
        except UserError:
            if zero.is_engine(run.objective):  # its shards cannot be used without the state
                zero.remove(output, run.step)
            raise
        export(config, average or content["network"], output / "model")


def _exported_weights(run: TrainingRun) -> dict[str, Tensor]:
    """The averaged weights, without an average the trained ones; whole on process 0, all must call it."""
    trained = full_state(run.objective, run.optimizers)["network"]
    return trained if run.average is None else run.average.tensors


def _evaluate(run: TrainingRun, config: TrainConfig, process: Process) -> dict[str, float]:
    """Evaluate the weights to be exported, on one process; the others wait for it later."""
    weights = _exported_weights(run)
    if process.rank != 0:
        return {}
    network = Fast3R(config.model)
    network.load_state_dict(weights)
    network.to(process.device)
    return validate(network, config.data, config.run.evaluate_scenes, device=process.device)


def export(config: TrainConfig, tensors: dict[str, Tensor], directory: Path) -> None:
    """Write the weights as a checkpoint directory in the official layout, in float16."""
    network = Fast3R(config.model)
    network.load_state_dict({name: tensor.cpu() for name, tensor in tensors.items()})
    network.half().save_pretrained(directory)


def _chosen_views(config: TrainConfig, step: int, views: int) -> list[int]:
    """The views that heads and loss use in this step: view 0 and a random choice of the others."""
    wanted = config.run.head_views or views
    if wanted >= views:
        return list(range(views))
    others = np.random.default_rng([config.seed, step, 2**20]).permutation(np.arange(1, views))
    return [0, *sorted(others[: wanted - 1].tolist())]


class _Log:
    """log.jsonl, and TensorBoard where it is installed.

    If a log cannot be written, as on a full disk, logging stops with a warning and training continues.
    """

    def __init__(self, output: Path, active: bool) -> None:
        self.file: TextIO | None = None
        self.board: Any = None
        if not active:
            return
        with writable(output):
            output.mkdir(parents=True, exist_ok=True)
            self.file = (output / "log.jsonl").open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            _log.info("tensorboard is not installed; logging to %s only", self.file.name)
        else:
            self.board = SummaryWriter(str(output / "tensorboard"))

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line per call: the step, the time and the values."""
        with self._giving_up():
            if self.file is not None:
                self.file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
                self.file.flush()
            if self.board is not None:
                for name, value in values.items():
                    self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        with self._giving_up():
            if self.file is not None:
                self.file.close()
            if self.board is not None:
                self.board.close()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _log.warning("logging stopped: %s", one_line(error.strerror or error))
            self.file = self.board = None
