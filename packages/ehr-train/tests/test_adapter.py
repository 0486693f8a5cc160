"""Adapters from a trained run to predictions, on networks that are built by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from ehr_core.config import from_plain, preset, to_plain
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.folder import read_json
from ehr_core.formats.labels import read_labels
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore
from ehr_core.outcomes import BINARY, Question
from ehr_core.plugins import build
from ehr_core.protocols import FitJob, PredictJob
from ehr_train import checkpoint, runfolder
from ehr_train.job import TrainJob, adapter_of, running
from ehr_train.learner import load_run
from ehr_train.loader.samples import Samples
from ehr_train.settings import FinetunedConfig, TrainConfig

from .stopping import StopHere, stop_at, train_and_kill
from .world import train

WIDTH, LAYERS, RANK = 32, 2, 4
LORA = {"name": "lora", "rank": RANK, "dropout": 0.1}
HEAD = WIDTH + 1
ADAPTER = LAYERS * 4 * RANK * (WIDTH + WIDTH)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tiny, store, tmp_path_factory):
    """A run of a decoder that has learned a little."""
    shape = {"name": "gpt", "num_layers": LAYERS, "num_heads": 2, "width": WIDTH, "context_length": 64}
    job = TrainJob(
        str(store),
        str(tmp_path_factory.mktemp("base") / "run"),
        from_plain("model", shape),
        from_plain("objective", {"name": "next_token"}),
        train=TrainConfig(batch_size=8, max_steps=30, learning_rate=1e-2),
    )
    return train(job, 1)


@pytest.fixture
def job(base, store, labels, tmp_path):
    """Ten steps of an adapter with dropout, and its head."""
    return TrainJob(
        str(store),
        str(tmp_path / "run"),
        from_plain("model", {"name": "gpt"}),
        from_plain("objective", {"name": "classification"}),
        train=TrainConfig(batch_size=4, max_steps=10, log_every=2, eval_every=4, learning_rate=1e-2),
        labels=str(labels),
        start=str(base),
        adapter=LORA,
    )


def weights(path, name):
    return checkpoint.read(path / "checkpoints" / f"{name}.pt")


def same(one, two, atol=0.0):
    parts = ("adapter", "objective")
    assert all(one[part].keys() == two[part].keys() for part in parts)
    return all(torch.allclose(one[p][k], two[p][k], rtol=0, atol=atol) for p in parts for k in one[p])


def predictions(learner, store, labels):
    asked = read_labels(labels)
    rows = Samples(TokenStore(store), "held_out", asked.tables["held_out"], asked.question, 64).evaluation()
    with torch.no_grad():
        return learner.objective.predict(learner.model.eval(), rows.batch(torch.arange(len(rows)).numpy()))


def test_finetuning_an_adapter_learns_a_question_and_counts_what_it_trains(base, store, labels, tmp_path):
    output = tmp_path / "fitted"
    output.mkdir()
    settings = FinetunedConfig(adapter=LORA, learning_rate=1e-2, max_epochs=8, batch_size=8, patience=8)
    predictor = build("predictor", settings)
    predictor.fit(FitJob(labels=labels, output=output, work=tmp_path / "work", store=store, run=base))
    found = predictor.predict(PredictJob(fitted=output, labels=labels, splits=("held_out",), store=store))["held_out"]
    right = int(((found >= 0.5) == read_labels(labels).array("held_out")).sum())
    assert right >= 27, f"{right} of {len(found)}"
    tuned = output / "run"
    frozen = read_json(base / "metadata.json")["parameters"]["model"]
    expected = {
        "model": frozen + ADAPTER,
        "objective": HEAD,
        "total": frozen + ADAPTER + HEAD,
        "trainable": ADAPTER + HEAD,
        "adapter": ADAPTER,
        "frozen": frozen,
    }
    assert read_json(tuned / "metadata.json")["parameters"] == expected
    assert read_json(tuned / "summary.json")["parameters"] == expected
    assert f"{ADAPTER + HEAD:,} trained ({ADAPTER:,} of an adapter)" in (tuned / "SUMMARY.txt").read_text()


def test_the_optimizer_has_the_adapter_and_the_head_alone_and_the_base_keeps_every_bit(job, base, monkeypatch):
    seen = {}

    def look(folder, job, learner, trainer, inputs, content):
        seen["optimized"] = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
        seen["frozen"] = {n: p.clone() for n, p in trainer.learner.model.named_parameters() if not p.requires_grad}
        return finish(folder, job, learner, trainer, inputs, content)

    finish = runfolder.finish
    monkeypatch.setattr(runfolder, "finish", look)
    train(job, 1)
    assert seen["optimized"] == ADAPTER + HEAD
    before = weights(base, "best_model")["model"]
    renamed = {n.removeprefix("base_model.model.").replace(".base_layer.", "."): p for n, p in seen["frozen"].items()}
    assert renamed.keys() <= before.keys()
    assert sum(p.numel() for p in renamed.values()) == read_json(base / "metadata.json")["parameters"]["model"]
    assert all(torch.equal(weight, before[name]) for name, weight in renamed.items())


def test_a_run_with_an_adapter_predicts_without_its_base_and_as_the_adapter_on_it(job, base, store, labels, tmp_path):
    path = train(job, 1)
    _, wrapped = load_run(base, CPU)
    _, merged = load_run(shutil.copytree(path, tmp_path / "elsewhere"), CPU)
    untouched = predictions(Parts(wrapped.model, merged.objective), store, labels)
    parts = {"width": WIDTH, "vocabulary": Run(path).vocabulary, "question": Question(BINARY)}
    head = build("objective", job.objective, **parts).eval()
    adapted = build("adapter", adapter_of(path / "adapter")[0]).load(wrapped.model, path / "adapter", head)
    found, expected = predictions(merged, store, labels), predictions(Parts(adapted, head), store, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - untouched).abs().max() > 0.01
    from peft import PeftModel

    network = type(merged.model)
    theirs = PeftModel.from_pretrained(network.from_pretrained(base / "model"), str(path / "adapter")).eval()
    torch.testing.assert_close(predictions(Parts(theirs, head), store, labels), expected)
    assert torch.equal(
        network.from_pretrained(path / "model").state_dict()["embeddings.token.weight"],
        merged.model.state_dict()["embeddings.token.weight"],
    )
    kept = weights(path, "latest")
    assert "model" not in kept
    assert sum(tensor.numel() for tensor in kept["adapter"].values()) == ADAPTER
    assert weights(path, "best_model")["model"].keys() == weights(base, "best_model")["model"].keys()
    assert "adapter" in Run(path).settings


@dataclasses.dataclass
class Parts:
    """What `predictions` looks at of a learner."""

    model: object
    objective: object


def test_a_token_table_is_trained_with_the_adapter_when_that_is_asked_for(job, base):
    path = train(dataclasses.replace(job, adapter={"name": "lora", "embeddings": True}), 1)
    tables = [weights(run, "best_model")["model"]["embeddings.token.weight"] for run in (path, base)]
    assert not torch.equal(*tables)
    number = read_json(path / "metadata.json")["parameters"]
    assert number["adapter"] == number["trainable"] - HEAD == 2 * ADAPTER + tables[0].numel()  # of rank 8


@pytest.mark.parametrize("name", ["lora", "lora_all", "dora", "rslora"])
def test_every_preset_trains(job, name):
    settings = dataclasses.replace(job.train, max_steps=3, eval_every=3)
    path = train(dataclasses.replace(job, adapter=name, train=settings), 1)
    settings = read_json(path / "adapter" / "adapter.json")["settings"]
    assert settings == to_plain(preset("adapter", name))
    assert Run(path).settings["adapter"] == settings


@pytest.mark.slow
def test_two_processes_train_an_adapter_as_one_does(job, tmp_path):
    quiet = dataclasses.replace(job, adapter=LORA | {"dropout": 0.0}, train=dataclasses.replace(job.train, log_every=1))
    quiet = dataclasses.replace(quiet, objective=dataclasses.replace(job.objective, dropout=0.0))
    one = train(dataclasses.replace(quiet, output=str(tmp_path / "one")), 1)
    halved = dataclasses.replace(quiet.train, batch_size=2)
    two = train(dataclasses.replace(quiet, train=halved), 2)
    assert len(Run(one).history) == len(Run(two).history) > 10
    for a, b in zip(Run(one).history, Run(two).history, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert same(weights(one, "latest"), weights(two, "latest"), atol=1e-5)
    assert read_json(two / "metadata.json")["world_size"] == 2


@pytest.mark.parametrize("step", [3, 9])
def test_an_adapter_whose_training_stopped_ends_in_the_same_bits(job, tmp_path, step):
    job = dataclasses.replace(job, train=dataclasses.replace(job.train, checkpoint_every=2))
    whole = train(dataclasses.replace(job, output=str(tmp_path / "whole")), 1)
    with pytest.raises(StopHere):
        stop_at(job, step)
    torch.rand(1)
    path = train(job, 1)
    check_same_runs(path, whole)


def check_same_runs(path, whole):
    assert read_json(path / "logs/metrics_history.json") == read_json(whole / "logs/metrics_history.json")
    assert same(weights(path, "latest"), weights(whole, "latest"))
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors", "adapter/objective.safetensors"):
        assert (path / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_run_that_was_killed_while_it_was_being_finished_is_finished(job, tmp_path, monkeypatch):
    whole = train(dataclasses.replace(job, output=str(tmp_path / "whole")), 1)

    def stop(*arguments):
        raise StopHere

    for late in ("metadata", "write_manifest"):
        with monkeypatch.context() as patch:
            patch.setattr(runfolder, late, stop)
            with pytest.raises(StopHere):
                train(job, 1)
        (running(Path(job.output)) / "adapter.partial-1").mkdir()
    path = train(job, 1)
    check_same_runs(path, whole)
    assert not list(path.glob("adapter.*"))


@pytest.mark.slow
def test_an_adapter_whose_training_was_killed_continues_bit_for_bit(job, tmp_path):
    job = dataclasses.replace(
        job, train=dataclasses.replace(job.train, checkpoint_every=5, max_steps=150, eval_every=50)
    )
    whole = train(dataclasses.replace(job, output=str(tmp_path / "whole")), 1)
    train_and_kill(job, tmp_path)
    check_same_runs(train(job, 1), whole)


def test_an_adapter_that_was_trained_before_is_trained_further(job, tmp_path):
    first = train(job, 1)
    still = dataclasses.replace(job.train, learning_rate=0.0, max_steps=1)
    again = dataclasses.replace(job, adapter=str(first / "adapter"), train=still, output=str(tmp_path / "again"))
    path = train(again, 1)
    one, two = (weights(run, "best_model")["adapter"] for run in (first, path))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "adapter" in Run(path).manifest.inputs


def test_what_cannot_be_adapted_is_one_clear_line(job, base, tiny, store, tmp_path):
    def refused(words, kind=ConfigError, **changes):
        with pytest.raises(kind, match=words) as found:
            train(dataclasses.replace(job, **changes), 1)
        assert "\n" not in str(found.value)
        shutil.rmtree(running(Path(job.output)), ignore_errors=True)

    refused("an adapter needs a trained model to sit on", start=None)
    refused("no adapter is named 'lroa'.*Allowed: dora, lora, lora_all, rslora", adapter="lroa")
    refused("rnak", adapter={"name": "lora", "rnak": 4})
    refused("'four' of type 'str' could not be converted", adapter={"name": "lora", "rank": "four"})
    refused("targets is 'heads'", adapter={"name": "lora", "targets": "heads"})
    quick = TrainConfig(batch_size=8, max_steps=2)
    plain = TrainJob(str(store), str(tmp_path / "tiny"), tiny.TinyConfig(), tiny.TinyNextConfig(), train=quick)
    shape = from_plain("model", Run(base).settings["model"])
    experts = dataclasses.replace(plain, model=dataclasses.replace(shape, num_experts=2), output=str(tmp_path / "moe"))
    experts = dataclasses.replace(experts, objective=from_plain("objective", {"name": "next_token"}))
    refused(
        "no linear layer for adapter.targets=feed_forward",
        start=str(train(experts, 1)),
        adapter={"name": "lora", "targets": "feed_forward"},
    )
    quick_adapter = train(dataclasses.replace(job, train=quick, output=str(tmp_path / "adapted")), 1)
    other = train(dataclasses.replace(experts, model=shape, output=str(tmp_path / "other")), 1)
    refused(
        "is an adapter for a base with weights", FormatError, start=str(other), adapter=str(quick_adapter / "adapter")
    )


def test_a_model_that_knows_nothing_of_adapters_gets_one(job, tiny, store, tmp_path):
    quick = TrainConfig(batch_size=8, max_steps=2)
    plain = TrainJob(str(store), str(tmp_path / "tiny"), tiny.TinyConfig(), tiny.TinyNextConfig(), train=quick)
    path = train(dataclasses.replace(job, start=str(train(plain, 1)), train=quick), 1)
    number = read_json(path / "metadata.json")["parameters"]
    assert 0 < number["adapter"] == number["trainable"] - HEAD < number["frozen"]


def test_a_job_with_an_adapter_survives_the_way_through_json(job):
    assert TrainJob.from_plain(json.loads(json.dumps(job.to_plain()))) == job


def test_an_unfinished_run_with_another_adapter_is_refused(job):
    settings = dataclasses.replace(job.train, checkpoint_every=2)
    with pytest.raises(StopHere):
        stop_at(dataclasses.replace(job, train=settings), 6)
    with pytest.raises(FormatError, match="unfinished run of another job"):
        train(dataclasses.replace(job, train=settings, adapter="dora"), 1)
