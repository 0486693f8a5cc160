import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from ehr_core.errors import ConfigError, EhrError, FormatError
from ehr_core.formats.folder import read_json
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore
from ehr_core.plugins import build
from ehr_train.job import TrainJob, running
from ehr_train.launch import processes
from ehr_train.learner import load_run, make_learner
from ehr_train.loader.feed import Share, steps
from ehr_train.loader.windows import Windows
from ehr_train.optim import learning_rate, make_optimizer
from ehr_train.settings import SingleConfig, TrainConfig

from .world import DAY, VOCABULARY, Subject, running_of, same_weights, train, weights, write_store


def test_a_run_has_everything_that_its_reader_needs(job):
    path = train(job, 1)
    run = Run(path)
    assert run.vocabulary.digest == VOCABULARY.digest
    expected = """
        checkpoints/latest.pt checkpoints/best_model.pt model/config.json model/model.safetensors environment.txt
        tokenizer/tokenizer.json logs/metrics_history.json logs/metrics.jsonl hyperparameters.json metadata.json
        summary.json SUMMARY.txt plots/loss.png .hydra/config.yaml source/ehr_train/trainer.py source/ehr_train_tiny.py
    """
    for name in expected.split():
        assert (path / name).is_file(), name
    assert run.settings["model"]["dropout"] == 0.2
    assert not running(path).exists()
    assert not path.with_name("run.lock").exists()
    assert [entry["step"] for entry in run.history] == [2, 4, 4, 6, 8, 8, 10, 12, 12]
    found = read_json(path / "metadata.json")
    assert found["tokens_per_second"] > 0
    assert torch.__version__.startswith(found["versions"]["torch"])  # the metadata may lack the build (+cpu)


def test_checkpoints_hold_plain_tensors_under_the_agreed_names(job):
    path = train(job, 1)
    latest = torch.load(path / "checkpoints" / "latest.pt", weights_only=True)
    for key in ("model", "model_configs", "vocab_stoi", "hydra_config_full", "objective", "optimizer", "schedule"):
        assert key in latest
    assert latest["vocab_stoi"] == VOCABULARY.ids
    assert latest["hydra_config_full"]["train"]["batch_size"] == 8
    assert "optimizer" not in torch.load(path / "checkpoints" / "best_model.pt", weights_only=True)


def test_a_run_loads_with_the_weights_that_had_the_best_tuning_loss(job):
    path = train(job, 1)
    run, learner = load_run(path, torch.device("cpu"))
    tuning = {entry["step"]: entry["tuning_loss"] for entry in run.history if "tuning_loss" in entry}
    summary = read_json(path / "summary.json")
    assert summary["best_tuning_loss"] == min(tuning.values())
    assert tuning[summary["best_step"]] == min(tuning.values())
    rows = Windows(TokenStore(job.store), "tuning", 64, 5).evaluation()
    with torch.no_grad():
        loss = learner(rows.batch(np.arange(len(rows))))
    assert float(loss.total / loss.count) == pytest.approx(min(tuning.values()), rel=1e-5)


def test_the_same_job_gives_the_same_bits(job, tmp_path):
    one = train(job, 1)
    two = train(dataclasses.replace(job, output=str(tmp_path / "again")), 1)
    assert read_json(one / "logs/metrics_history.json") == read_json(two / "logs/metrics_history.json")
    assert same_weights(weights(one, "latest"), weights(two, "latest"))


def test_a_learnable_grammar_is_learned_to_near_its_entropy(job):
    train_settings = TrainConfig(batch_size=8, max_steps=150, learning_rate=1e-2, eval_every=150)
    job = dataclasses.replace(job, model=dataclasses.replace(job.model, dropout=0.0), train=train_settings)
    history = Run(train(job, 1)).history
    right = 0.8 + 0.2 / 8
    entropy = -right * math.log(right) - 7 * 0.025 * math.log(0.025)
    assert history[0]["loss"] > 2 * entropy
    assert history[-1]["tuning_loss"] < 1.12 * entropy


def test_two_processes_take_the_steps_of_one_with_the_same_global_batch(job, tmp_path):
    quiet = dataclasses.replace(job, model=dataclasses.replace(job.model, dropout=0.0))
    settings = dataclasses.replace(job.train, batch_size=4, max_steps=6, log_every=1)
    one = train(dataclasses.replace(quiet, train=dataclasses.replace(settings, batch_size=8)), 1)
    two = train(dataclasses.replace(quiet, train=settings, output=str(tmp_path / "two")), 2)
    first, second = Run(one).history, Run(two).history
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert same_weights(weights(one, "latest"), weights(two, "latest"), atol=1e-5)
    assert read_json(two / "metadata.json")["world_size"] == 2


def test_micro_batches_take_the_step_of_one_big_batch(job, tmp_path):
    quiet = dataclasses.replace(job, model=dataclasses.replace(job.model, dropout=0.0))
    one = train(quiet, 1)
    settings = dataclasses.replace(job.train, batch_size=2, accumulate=4)
    two = train(dataclasses.replace(quiet, train=settings, output=str(tmp_path / "two")), 1)
    for a, b in zip(Run(one).history, Run(two).history, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert same_weights(weights(one, "latest"), weights(two, "latest"), atol=1e-5)


def test_the_gradient_is_that_of_the_mean_over_all_predicted_tokens(tiny, store):
    """Against autograd on one big batch: parts with very different counts must not be weighted alike."""
    opened = TokenStore(store)
    torch.manual_seed(0)
    learner = make_learner(tiny.TinyConfig(), tiny.TinyNextConfig(), VOCABULARY, opened.columns)
    rows = Windows(opened, "train", 64, 0).epoch(0)
    whole = learner(rows.batch(np.arange(8)))
    expected = torch.autograd.grad(whole.total / whole.count, list(learner.parameters()))
    for start, stop in ((0, 1), (1, 3), (3, 8)):
        loss = learner(rows.batch(np.arange(start, stop)))
        loss.total.backward()
    norm = build("strategy", SingleConfig()).clip(list(learner.parameters()), 1.0 / whole.count.float(), 0.0)
    for parameter, gradient in zip(learner.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
    assert float(norm) == pytest.approx(float(torch.stack([g.norm() for g in expected]).norm()), rel=1e-5)


def test_clipping_agrees_with_torch(tiny, store):
    learner = make_learner(tiny.TinyConfig(), tiny.TinyNextConfig(), VOCABULARY, [])
    gradients = [torch.randn_like(p) for p in learner.parameters()]
    for parameter, gradient in zip(learner.parameters(), gradients, strict=True):
        parameter.grad = 2 * gradient
    build("strategy", SingleConfig()).clip(list(learner.parameters()), torch.tensor(0.5), 0.7)
    found = [p.grad.clone() for p in learner.parameters()]
    for parameter, gradient in zip(learner.parameters(), gradients, strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(learner.parameters(), 0.7)
    for parameter, gradient in zip(learner.parameters(), found, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-8)


def test_the_rate_warms_up_and_falls_to_its_end():
    settings = TrainConfig(learning_rate=1.0, warmup_steps=10, min_learning_rate_ratio=0.1)
    rates = [learning_rate(settings, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_vectors_are_not_decayed(tiny):
    learner = make_learner(tiny.TinyConfig(), tiny.TinyNextConfig(), VOCABULARY, [])
    groups = make_optimizer(learner, TrainConfig(weight_decay=0.3)).param_groups
    for group in groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] == 0.3) for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(learner.parameters()))


def test_training_stops_when_the_tuning_loss_no_longer_falls(job):
    settings = dataclasses.replace(job.train, learning_rate=0.0, max_steps=50, eval_every=2, patience=3)
    path = train(dataclasses.replace(job, train=settings), 1)
    summary = read_json(path / "summary.json")
    assert summary["steps"] == 8
    assert summary["best_step"] == 2
    assert "3 evaluations" in summary["stopped"]


def test_without_a_tuning_split_the_last_weights_are_the_best(job, tiny, tmp_path):
    people = [Subject(n, [7 + n % 8] * 30, [DAY] * 30) for n in range(20)]
    path = write_store(tmp_path / "only", {"train": [people]})
    settings = dataclasses.replace(job.train, max_steps=None, max_epochs=2, eval_every=None, batch_size=2)
    run = train(dataclasses.replace(job, store=str(path), train=settings), 1)
    assert same_weights(weights(run), weights(run, "latest"))
    assert (run / "checkpoints" / "checkpoint_epoch_2.pt").is_file()
    assert not (run / "checkpoints" / "checkpoint_epoch_1.pt").is_file()


def test_a_loss_that_is_not_finite_stops_with_its_step(job):
    broken = dataclasses.replace(job, model=dataclasses.replace(job.model, explode=3e38))
    with pytest.raises(EhrError, match=r"not finite at step 1;.*learning_rate"):
        train(broken, 1)
    assert not (running_of(job) / "checkpoints" / "latest.pt").exists()


def test_an_output_that_exists_is_refused_before_anything_is_done(job):
    train(job, 1)
    with pytest.raises(FormatError, match="exists already"):
        train(job, 1)


@pytest.mark.slow
def test_an_error_in_a_process_of_several_is_one_line(job):
    crashing = dataclasses.replace(job, model=dataclasses.replace(job.model, crash_rank=1))
    with pytest.raises(EhrError, match=r"process 1 failed: RuntimeError: made to crash; its traceback is in") as raised:
        train(crashing, 2)
    assert "\n" not in str(raised.value)
    assert "made to crash" in next((running_of(job) / "logs").glob("error_rank_1.txt")).read_text()


def test_several_processes_need_a_strategy_for_several(job):
    with pytest.raises(ConfigError, match="strategy=single is one process"):
        train(dataclasses.replace(job, strategy=SingleConfig()), 2)


@pytest.mark.slow
def test_an_error_for_the_user_keeps_its_words_and_kind_over_processes(job):
    broken = dataclasses.replace(job, model=dataclasses.replace(job.model, explode=3e38))
    with pytest.raises(EhrError, match="not finite at step 1") as raised:
        train(broken, 2)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_parameter_without_a_gradient_stops_several_processes_with_its_name(job, tmp_path):
    idle = dataclasses.replace(job, model=dataclasses.replace(job.model, unused=True))
    with pytest.raises(EhrError, match=r"1 parameters get no gradient, the first is model.idle"):
        train(idle, 2)
    allowed = dataclasses.replace(idle.strategy, find_unused_parameters=True)
    settings = dataclasses.replace(idle.train, batch_size=2, accumulate=2, max_steps=4)
    path = train(dataclasses.replace(idle, strategy=allowed, train=settings, output=str(tmp_path / "two")), 2)
    one = dataclasses.replace(settings, batch_size=8, accumulate=1)
    other = train(dataclasses.replace(idle, train=one, output=str(tmp_path / "one")), 1)
    assert read_json(path / "summary.json")["steps"] == read_json(other / "summary.json")["steps"]


def test_a_run_starts_from_another_ones_model(job, tiny, tmp_path):
    first = train(job, 1)
    still = dataclasses.replace(job.train, learning_rate=0.0, max_steps=1)
    other = tiny.TinyConfig(width=8)
    path = train(dataclasses.replace(job, model=other, start=str(first), train=still, output=str(tmp_path / "next")), 1)
    assert Run(path).settings["model"]["width"] == 32
    assert same_weights(weights(first), weights(path))


@pytest.mark.parametrize("wrong", ["two", 0, -1])
def test_a_number_of_processes_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="world_size"):
        processes(wrong)


def test_a_job_survives_the_way_through_json(job):
    assert TrainJob.from_plain(json.loads(json.dumps(job.to_plain()))) == job


TORCHRUN = """
import json, sys
from ehr_core.errors import EhrError
from ehr_train.job import TrainJob
from ehr_train.launch import serving, train
with serving() as leader:
    if leader:
        jobs = json.load(open(sys.argv[1]))
        for job in jobs:
            try:
                train(TrainJob.from_plain(job))
            except EhrError as error:
                print("error:", error)
        print("pipeline over")
"""


@pytest.mark.slow
def test_under_torchrun_rank_0_leads_and_the_others_train_along_until_it_is_over(job, tmp_path):
    broken = dataclasses.replace(job, model=dataclasses.replace(job.model, explode=3e38))
    short = dataclasses.replace(job, train=dataclasses.replace(job.train, max_steps=2))
    jobs = [dataclasses.replace(j, output=str(tmp_path / str(n))) for n, j in enumerate((short, broken, short))]
    (tmp_path / "jobs.json").write_text(json.dumps([j.to_plain() for j in jobs]))
    (tmp_path / "script.py").write_text(TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path / "jobs.json")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("error:") == 1
    assert "not finite at step 1" in found.stdout
    assert found.stdout.count("pipeline over") == 1
    assert Run(tmp_path / "0").history == Run(tmp_path / "2").history
    assert read_json(tmp_path / "2" / "metadata.json")["world_size"] == 2


def test_a_step_is_the_same_whatever_was_done_with_the_generators_before(store):
    data, share = Windows(TokenStore(store), "train", 64, 0), Share(0, 1, 4, 1)
    np.random.seed(1)
    one = next(steps(data, share, 2, 0))
    np.random.seed(2)
    two = next(steps(data, share, 2, 0))
    assert torch.equal(one.micro[0].token_BT, two.micro[0].token_BT)


def test_strategies_and_trackers_are_built_by_name(tiny):
    assert build("strategy", SingleConfig(device="cpu")).device == torch.device("cpu")
    with pytest.raises(ConfigError, match="device is 'gpu'"):
        build("strategy", SingleConfig(device="gpu"))
