"""One network on two processes gives the results of one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from parallel_cases import CASES, case_model, results, run_ranks
from small_model import small_model

from fast3r_ros.errors import UserError
from fast3r_ros.model.fast3r import Steps
from fast3r_ros.model.speed.acceleration import Acceleration, accelerate
from fast3r_ros.model.speed.parallel import Split, join_processes, parallelise

RANKS = 2
Results = dict[tuple[str, str], list[torch.Tensor]]


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """The results of every rank, by mode and case."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    run_ranks(RANKS, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["tensor", "sequence"])
@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_what_one_gives(of_ranks: list[Results], name: str, mode: str) -> None:
    expected = results(case_model(CASES[name]), CASES[name])
    for found in of_ranks:
        for ours, theirs in zip(found[mode, name], expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
            assert ours.is_contiguous()


@pytest.mark.slow
def test_the_gain_of_inference_is_seen_by_the_comparison(of_ranks: list[Results]) -> None:
    case = CASES["even"]
    without = results(case_model(replace(case, gain=False)), case)
    found = of_ranks[0]["sequence", "even"]
    assert max(float((a - b).abs().max()) for a, b in zip(found, without, strict=True)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["tensor", "sequence"])
def test_all_ranks_have_the_very_same_results(of_ranks: list[Results], mode: str) -> None:
    for name in CASES:
        for first, second in zip(of_ranks[0][mode, name], of_ranks[1][mode, name], strict=True):
            assert torch.equal(first, second)


def test_without_processes_there_is_nothing_to_split() -> None:
    model = small_model()
    assert parallelise(model, "none") is model
    with pytest.raises(UserError, match="torchrun"):
        parallelise(model, "tensor")
    with pytest.raises(UserError, match="torchrun"):
        join_processes("cpu")
    with pytest.raises(UserError, match="parallel mode is 'ring'"):
        parallelise(model, "ring")


def test_a_process_without_its_own_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.cuda.device_count()
    for name, value in (("TORCHELASTIC_RUN_ID", "test"), ("LOCAL_RANK", str(count))):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"process {count} has no GPU, this machine has {count}"):
        join_processes("cuda")
    with pytest.raises(UserError, match="cuda:0 names one device"):
        join_processes("cuda:0")


@pytest.fixture
def three_ranks() -> Iterator[None]:
    """A process group that claims three ranks and sends nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=3, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("three_ranks")
def test_heads_that_cannot_be_split_are_rejected_and_the_model_is_unchanged() -> None:
    model = small_model()
    with pytest.raises(UserError, match="4 attention heads, which 3 processes cannot share"):
        parallelise(model, "tensor")
    assert type(model.steps) is Steps
    assert isinstance(parallelise(model, "sequence").steps, Split)
    with pytest.raises(UserError, match="already"):
        parallelise(model, "sequence")


@pytest.mark.usefixtures("three_ranks")
def test_acceleration_and_several_processes_are_not_combined() -> None:
    merging = Acceleration(merge=2)
    with pytest.raises(UserError, match="cannot be combined"):
        parallelise(accelerate(small_model(), merging), "sequence")
    with pytest.raises(UserError, match="cannot be combined"):
        accelerate(parallelise(small_model(), "sequence"), merging)


@pytest.mark.usefixtures("three_ranks")
def test_a_split_model_is_not_saved(tmp_path: Path) -> None:
    model = parallelise(small_model(), "sequence")
    with pytest.raises(UserError, match="cannot be saved"):
        model.save_pretrained(tmp_path)
