"""A run that stops, at any moment and for any reason, goes on and ends in the same bits."""

import dataclasses
import json
import random
import time

import numpy as np
import pytest
import torch
from ehr_core.errors import EhrError, FormatError
from ehr_core.formats.folder import read_json
from ehr_core.formats.run import Run
from ehr_train import checkpoint
from ehr_train.settings import JsonlConfig, TensorBoardConfig
from filelock import FileLock

from .stopping import StopHere, stop_at, train_and_kill
from .world import same_weights, train, weights


def test_a_second_process_is_refused_while_the_first_is_training(job):
    with FileLock(f"{job.output}.lock"), pytest.raises(EhrError, match="another process is training"):
        train(job, 1)


def test_an_unfinished_run_of_another_job_is_refused(job):
    killed = dataclasses.replace(job, train=dataclasses.replace(job.train, checkpoint_every=2))
    with pytest.raises(StopHere):
        stop_at(killed, 6)
    changed = dataclasses.replace(killed, train=dataclasses.replace(killed.train, learning_rate=1e-4))
    with pytest.raises(FormatError, match="unfinished run of another job"):
        train(changed, 1)


@pytest.mark.parametrize("step", [3, 5, 9, 11])
def test_a_run_that_stopped_at_any_step_ends_in_the_same_bits(job, tmp_path, step):
    settings = dataclasses.replace(job.train, checkpoint_every=3, log_every=2)
    trackers = {"jsonl": JsonlConfig(), "board": TensorBoardConfig()}
    job = dataclasses.replace(job, train=settings, trackers=trackers)
    whole = train(dataclasses.replace(job, output=str(tmp_path / "whole")), 1)
    with pytest.raises(StopHere):
        stop_at(job, step)
    torch.rand(1), np.random.rand(), random.random()
    path = train(job, 1)
    assert read_json(path / "logs/metrics_history.json") == read_json(whole / "logs/metrics_history.json")
    assert same_weights(weights(path, "latest"), weights(whole, "latest"))
    assert same_weights(weights(path), weights(whole))
    lines = [json.loads(line) for line in (path / "logs/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [entry["step"] for entry in Run(path).history]
    assert [line.get("loss") for line in lines] == [entry.get("loss") for entry in Run(path).history]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(path / "tensorboard")).Reload()
    # Files of two lives within one second are read in the order of their names, where 10 comes before 9.
    assert sorted(event.step for event in board.Scalars("loss")) == [2, 4, 6, 8, 10, 12]
    assert sorted(event.step for event in board.Scalars("tuning_loss")) == [4, 8, 12]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_run_continues_bit_for_bit(job, tmp_path, world_size):
    settings = dataclasses.replace(job.train, batch_size=4, checkpoint_every=5, max_steps=120, eval_every=40)
    job = dataclasses.replace(job, train=settings)
    whole = train(dataclasses.replace(job, output=str(tmp_path / "whole")), world_size)
    train_and_kill(job, tmp_path, world_size)
    deadline = time.monotonic() + 30
    while True:  # the workers of the dead parent let go of the lock within moments
        try:
            path = train(job, world_size)
            break
        except EhrError as error:
            if "another process" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    assert read_json(path / "logs/metrics_history.json") == read_json(whole / "logs/metrics_history.json")
    assert same_weights(weights(path, "latest"), weights(whole, "latest"))


def test_the_random_state_returns_exactly():
    checkpoint.seed_all(3, 1)
    state = checkpoint.random_state()
    draws = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    checkpoint.set_random_state(state)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == draws


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "latest.pt").write_bytes(b"no")
    with pytest.raises(FormatError, match=r"latest.pt is not a checkpoint"):
        checkpoint.read(tmp_path / "latest.pt")
