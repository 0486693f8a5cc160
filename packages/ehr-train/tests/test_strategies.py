"""A strategy owns where a learner and its state live: whichever it is, the run is the same."""

import dataclasses

import pytest
import torch
from ehr_core.errors import ConfigError
from ehr_core.formats.folder import read_json
from ehr_core.formats.run import Run
from ehr_core.plugins import build
from ehr_train.learner import load_run, make_learner
from ehr_train.optim import make_optimizer
from ehr_train.settings import DdpConfig, Fsdp2Config, SingleConfig, TrainConfig
from ehr_train.strategies import Replicated

from .stopping import StopHere, stop_at, train_and_kill, train_and_stop
from .world import VOCABULARY, same_weights, train, weights


@pytest.fixture
def quiet(job):
    """Without dropout, so that any number of processes computes the same; checkpoints in the middle of everything."""
    settings = dataclasses.replace(job.train, batch_size=4, checkpoint_every=3, log_every=2, eval_every=4)
    return dataclasses.replace(job, model=dataclasses.replace(job.model, dropout=0.0), train=settings)


def of_rows(job, output, batch_size, accumulate=1, strategy=None):
    settings = dataclasses.replace(job.train, batch_size=batch_size, accumulate=accumulate)
    return dataclasses.replace(job, train=settings, output=str(output), strategy=strategy or job.strategy)


def histories_agree(one, two, within=1e-5):
    first, second = Run(one).history, Run(two).history
    assert [entry["step"] for entry in first] == [entry["step"] for entry in second]
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, abs=within)
    return True


@pytest.mark.slow
def test_fsdp2_is_ddp_to_float_tolerance(quiet, tmp_path):
    ddp = train(of_rows(quiet, tmp_path / "ddp", 2, 2, DdpConfig()), 2)
    sharded = train(of_rows(quiet, tmp_path / "fsdp2", 2, 2, Fsdp2Config()), 2)
    assert histories_agree(ddp, sharded)
    for name in ("latest", "best_model"):
        assert same_weights(weights(ddp, name), weights(sharded, name), atol=1e-5)
    one, two = weights(ddp, "latest")["optimizer"], weights(sharded, "latest")["optimizer"]
    assert one["groups"] == two["groups"]
    for name, state in one["state"].items():
        assert state.keys() == two["state"][name].keys()
        for key, value in state.items():
            assert torch.allclose(value, two["state"][name][key], rtol=0, atol=1e-5), (name, key)
    _, learner = load_run(sharded, torch.device("cpu"))
    assert type(learner).__name__ == "Learner", "what is exported is not divided"
    assert not any(isinstance(p, torch.distributed.tensor.DTensor) for p in learner.parameters())


@pytest.mark.slow
def test_fsdp2_that_was_killed_goes_on_bit_for_bit(job, tmp_path):
    settings = dataclasses.replace(job.train, batch_size=4, checkpoint_every=5, max_steps=60, eval_every=20)
    job = dataclasses.replace(job, train=settings, strategy=Fsdp2Config())
    whole = train(dataclasses.replace(job, output=str(tmp_path / "whole")), 2)
    train_and_kill(job, tmp_path, 2)
    path = train_when_free(job, 2)
    assert read_json(path / "logs/metrics_history.json") == read_json(whole / "logs/metrics_history.json")
    assert same_weights(weights(path, "latest"), weights(whole, "latest"))


def train_when_free(job, world_size):
    """The workers of a dead parent let go of the lock within moments."""
    import time

    from ehr_core.errors import EhrError

    deadline = time.monotonic() + 30
    while True:
        try:
            return train(job, world_size)
        except EhrError as error:
            if "another process" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [DdpConfig(), Fsdp2Config()], ids=["ddp", "fsdp2"])
def test_a_run_goes_on_with_another_number_of_processes_on_the_same_batches(quiet, tmp_path, strategy):
    whole = train(of_rows(quiet, tmp_path / "whole", 4), 1)
    # begun by one, continued by two
    with pytest.raises(StopHere):
        stop_at(of_rows(quiet, tmp_path / "grows", 4, strategy=strategy), 7)
    grows = train(of_rows(quiet, tmp_path / "grows", 2, strategy=strategy), 2)
    assert read_json(grows / "metadata.json")["world_size"] == 2
    # begun by two, continued by one with two micro-batches
    longer = of_rows(quiet, tmp_path / "shrinks", 2, strategy=strategy)
    train_and_stop(longer, tmp_path, 2)
    shrinks = train(of_rows(quiet, tmp_path / "shrinks", 2, 2, strategy), 1)
    for path in (grows, shrinks):
        assert histories_agree(whole, path)
        assert same_weights(weights(whole, "latest"), weights(path, "latest"), atol=1e-5)


def test_another_global_batch_is_another_job(quiet, tmp_path):
    digests = {
        rows: of_rows(quiet, "x", *rows[:2]).digest({}, rows[2])
        for rows in [(8, 1, 1), (4, 1, 2), (2, 4, 1), (4, 1, 1)]
    }
    assert digests[8, 1, 1] == digests[4, 1, 2] == digests[2, 4, 1]
    assert digests[8, 1, 1] != digests[4, 1, 1]
    with pytest.raises(StopHere):
        stop_at(of_rows(quiet, tmp_path / "run", 4), 5)
    with pytest.raises(Exception, match=r"takes 8 rows a step: train.batch_size x train.accumulate x world_size"):
        train(of_rows(quiet, tmp_path / "run", 8), 1)


def test_neither_strategy_nor_trackers_nor_the_place_are_part_of_a_job(job):
    for change in (
        {"strategy": Fsdp2Config()},
        {"trackers": {}},
        {"output": "y"},
        {"config": {"a": 1}},
        {"stage": "z"},
    ):
        assert dataclasses.replace(job, **change).digest({}, 1) == job.digest({}, 1)
    assert dataclasses.replace(job, seed=6).digest({}, 1) != job.digest({}, 1)


@pytest.mark.slow
def test_every_rank_evaluates_as_often_though_there_are_fewer_rows_than_ranks_take(quiet, tmp_path):
    """Thirty tuning subjects make an odd number of rows: with collectives in a forward pass a rank would wait."""
    one = train(of_rows(quiet, tmp_path / "one", 16), 1)
    two = train(of_rows(quiet, tmp_path / "two", 8, strategy=Fsdp2Config()), 2)
    assert histories_agree(one, two)


class Plain(Replicated):
    """What a strategy of ten lines looks like."""

    def __init__(self, settings):
        super().__init__(settings, "cpu")


def test_a_simple_strategy_keeps_and_restores_the_whole_state(tiny):
    strategy = Plain(SingleConfig())

    def learner():
        return make_learner(tiny.TinyConfig(), tiny.TinyNextConfig(), VOCABULARY, [])

    torch.manual_seed(0)
    one = strategy.place(learner())
    optimizer = make_optimizer(one, TrainConfig())
    for parameter in one.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    two = strategy.place(learner())
    other = make_optimizer(two, TrainConfig())
    strategy.load_weights(two, strategy.weights(one))
    strategy.restore_optimizer(two, other, strategy.optimizer_state(one, optimizer))
    for learned, optimized in ((one, optimizer), (two, other)):
        for parameter in learned.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        optimized.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert strategy.sum(torch.tensor([2.0])).tolist() == [2.0]
    assert strategy.gather("x") == ["x"]


def test_state_of_other_parameters_is_refused(tiny):
    strategy = build("strategy", SingleConfig(device="cpu"))
    small, large = (
        make_learner(tiny.TinyConfig(width=width), tiny.TinyNextConfig(), VOCABULARY, []) for width in (8, 16)
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        strategy.load_weights(large, strategy.weights(small))
    state = strategy.optimizer_state(small, make_optimizer(small, TrainConfig()))
    state["groups"][0]["names"] = state["groups"][0]["names"][1:]
    with pytest.raises(RuntimeError, match="other parameters"):
        strategy.restore_optimizer(small, make_optimizer(small, TrainConfig()), state)


def test_strategies_say_how_many_processes_they_can_use(job):
    with pytest.raises(ConfigError, match="strategy=single is one process, and world_size is 2"):
        train(dataclasses.replace(job, strategy=SingleConfig()), 2)
