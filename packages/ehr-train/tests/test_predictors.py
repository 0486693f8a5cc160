import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ehr_core.errors import ConfigError, DataError, FormatError, NotApplicable
from ehr_core.formats.folder import Manifest, read_json, write_manifest
from ehr_core.formats.labels import Labels, read_labels, write_label_folder, write_labels
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore, prefix_tokens
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.outcomes import KINDS, Question
from ehr_core.plugins import build
from ehr_core.protocols import FitJob, OutcomeCodes, PredictJob
from ehr_core.testing.corruption import reseal
from ehr_train.job import TrainJob
from ehr_train.learner import load_run
from ehr_train.predictors import finetuned
from ehr_train.settings import DirectConfig, FinetunedConfig, JsonlConfig, SingleConfig, TrainConfig

from .world import PREFIX, VOCABULARY, cohort, train

A_OR_B, C = (VOCABULARY["CODE//A"], VOCABULARY["CODE//B"]), (VOCABULARY["CODE//C"],)
OUTCOME = OutcomeCodes(positive=("CODE//A", "CODE//B"), negative=("CODE//C",))


@pytest.fixture(scope="module")
def run(tiny, store, tmp_path_factory):
    """A model that has learned a little."""
    output = tmp_path_factory.mktemp("runs") / "run"
    settings = TrainConfig(batch_size=8, max_steps=30, learning_rate=1e-2)
    return train(TrainJob(str(store), str(output), tiny.TinyConfig(), tiny.TinyNextConfig(), train=settings), 1)


@pytest.fixture
def job(run, store, labels, tmp_path):
    output = tmp_path / "fitted"
    output.mkdir()
    return FitJob(labels=labels, output=output, work=tmp_path / "work", store=store, run=run, codes=OUTCOME)


def applied(job, settings, *splits, labels=None, store=None):
    """Fit, then predict; the predictions of all splits in a row."""
    build("predictor", settings).fit(job)
    found = predicted(job, settings, *(splits or ("tuning", "held_out")), labels=labels, store=store)
    return np.concatenate(list(found.values()))


def predicted(job, settings, *splits, labels=None, store=None):
    asked = PredictJob(fitted=job.output, labels=labels or job.labels, splits=splits, store=store or job.store)
    return build("predictor", settings).predict(asked)


def next_token(learner, store, split, subject, time, tail=None, reserve=0):
    """Distribution of the next token from one window alone, made with plain loops."""
    for shard in TokenStore(store).tables(split):
        for place in np.flatnonzero(shard.subject_id == subject):
            low, high = int(shard.offset[place]), int(shard.offset[place + 1])
            kept = [at for at in range(low, high) if shard.time[at] <= time][-(64 - 3 - reserve) :]
            prefix = prefix_tokens(PREFIX, shard, int(place), int(shard.time[kept[0]]))
            tokens = [*prefix.tolist(), *shard.token[kept].tolist(), *([] if tail is None else [tail])]
            ids = torch.tensor([tokens])
            position = torch.arange(len(tokens))[None]
            with torch.no_grad():
                hidden = learner.model(ids, position, torch.ones_like(ids)).last_hidden_state[0, -1]
                return learner.model.lm_logits(hidden).double().softmax(-1).numpy()
    raise AssertionError("no such subject")


def rows_of(labels, split):
    table = read_labels(labels).tables[split]
    times = table["prediction_time"].cast(pa.int64()).to_pylist()
    return list(zip(table["subject_id"].to_pylist(), times, strict=True))


def test_direct_is_the_share_of_the_positive_codes_in_the_next_token(job, run, store, labels):
    found = applied(job, DirectConfig(batch_size=3))
    _, learner = load_run(run, torch.device("cpu"))
    expected = []
    for split in ("tuning", "held_out"):
        for subject, time in rows_of(labels, split):
            p = next_token(learner, store, split, subject, time)
            expected.append(p[[*A_OR_B]].sum() / (p[[*A_OR_B]].sum() + p[[*C]].sum()))
    assert np.allclose(found, expected, atol=1e-5)


def test_direct_with_a_horizon_looks_over_the_intervals_within_it(job, run, store, labels):
    outcome = dataclasses.replace(OUTCOME, horizon_days=20.0)
    found = applied(dataclasses.replace(job, codes=outcome), DirectConfig(), "held_out")
    _, learner = load_run(run, torch.device("cpu"))
    expected = []
    for subject, time in rows_of(labels, "held_out"):
        p = next_token(learner, store, "held_out", subject, time, reserve=1)
        positive, negative = p[[*A_OR_B]].sum(), p[[*C]].sum()
        for name, share in (("1d-10d", 1.0), ("10d-40d", 1 / 3), ("40d-", 0.0)):
            token = VOCABULARY[name]
            q = next_token(learner, store, "held_out", subject, time, tail=token, reserve=1)
            positive += share * p[token] * q[[*A_OR_B]].sum()
            negative += share * p[token] * q[[*C]].sum() + (1 - share) * p[token]
        expected.append(positive / (positive + negative))
    assert np.allclose(found, expected, atol=1e-5)


def test_a_samples_prediction_does_not_depend_on_what_is_predicted_with_it(job, labels, tmp_path):
    settings = DirectConfig(batch_size=16)
    together = applied(job, settings, "held_out")
    table = read_labels(labels).tables["held_out"]
    for number in (0, 11, 29):
        alone = tmp_path / str(number)
        write_labels(alone / "held_out.parquet", table.slice(number, 1))
        found = predicted(job, settings, "held_out", labels=alone)["held_out"]
        assert found == pytest.approx([together[number]], abs=1e-6)


def test_what_was_fitted_needs_nothing_else_and_names_its_tokenizer(job, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(job.run, own)
    found = applied(dataclasses.replace(job, run=own), DirectConfig(), "held_out")
    shutil.rmtree(own)
    shutil.rmtree(job.work, ignore_errors=True)
    moved = dataclasses.replace(job, output=job.output.rename(tmp_path / "elsewhere"))
    assert np.array_equal(predicted(moved, DirectConfig(), "held_out")["held_out"], found)
    tokenizer = build("predictor", DirectConfig()).tokenizer(moved.output)
    assert Vocabulary.load(tokenizer).digest == VOCABULARY.digest
    assert not (moved.output / "run" / "checkpoints" / "latest.pt").exists()


def test_subjects_and_times_without_an_outcome_are_predicted_the_same(job, labels, tmp_path):
    found = applied(job, DirectConfig(), "held_out")
    table = read_labels(labels).tables["held_out"].select(["subject_id", "prediction_time"])
    (tmp_path / "bare").mkdir()
    pq.write_table(table, tmp_path / "bare" / "held_out.parquet")
    assert np.array_equal(predicted(job, DirectConfig(), "held_out", labels=tmp_path / "bare")["held_out"], found)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (None, "name no task"),
        (OutcomeCodes(("NOWHERE",), ("CODE//C",)), r"no token stands for a positive code \(NOWHERE\)"),
        (OutcomeCodes(("CODE//A",), ()), r"no token stands for a negative code \(none given\)"),
    ],
)
def test_direct_says_why_it_cannot_answer(job, outcome, reason):
    with pytest.raises(NotApplicable, match=reason):
        build("predictor", DirectConfig()).fit(dataclasses.replace(job, codes=outcome))


def test_a_horizon_without_interval_tokens_is_not_answered(job, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "tokenizer" / "intervals.json").unlink()
    reseal(copy)
    asked = dataclasses.replace(job, run=copy, codes=dataclasses.replace(OUTCOME, horizon_days=30.0))
    with pytest.raises(NotApplicable, match="needs interval tokens"):
        build("predictor", DirectConfig()).fit(asked)


def other_store(store, folder):
    """The same tokens under a vocabulary with one token more."""
    shutil.copytree(store, folder)
    changed = Vocabulary([*VOCABULARY.tokens, Token("MORE", "code")])
    changed.save(folder)
    manifest = read_json(folder / "manifest.json", Manifest)
    manifest.content["vocabulary"] = changed.digest
    write_manifest(folder, manifest)
    return folder


def test_labels_of_unknown_subjects_and_stores_of_another_vocabulary_are_refused(job, store, tmp_path):
    build("predictor", DirectConfig()).fit(job)
    folder = tmp_path / "strange"
    table = read_labels(job.labels).tables["tuning"]
    write_labels(folder / "tuning.parquet", table.set_column(0, "subject_id", pa.array(range(30), pa.int64())))
    with pytest.raises(DataError, match="30 of the 30 subjects"):
        predicted(job, DirectConfig(), "tuning", labels=folder)
    other = other_store(store, tmp_path / "other")
    with pytest.raises(FormatError, match="tokenize with fitted=") as raised:
        predicted(job, DirectConfig(), "tuning", store=other)
    for vocabulary in (VOCABULARY, TokenStore(other).vocabulary):
        assert vocabulary.digest[:12] in str(raised.value)


FAST = {"objective": "tiny_any", "learning_rate": 1e-2, "batch_size": 8}


def test_finetuning_learns_a_question_that_the_visible_codes_answer(job, run, labels):
    settings = FinetunedConfig(**(FAST | {"objective": "tiny_binary"}), max_epochs=8)
    found = applied(job, settings, "held_out")
    right = (found >= 0.5) == read_labels(labels).array("held_out").astype(bool)
    assert right.sum() >= 29
    tuned = Run(job.output / "run")
    assert tuned.question.kind == "binary"
    assert "start" in tuned.manifest.inputs
    assert len(tuned.history) > 3
    before = (job.work / "run" / "summary.json").stat().st_mtime_ns
    again = dataclasses.replace(job, output=job.output.with_name("again"))
    assert np.array_equal(applied(again, settings, "held_out"), found)
    assert (job.work / "run" / "summary.json").stat().st_mtime_ns == before, "trained again for nothing"


def labels_of_kind(folder, kind):
    """Every kind of label, of what the last visible code is; the names are in the manifest."""
    names = {"multiclass": ("low", "mid", "high"), "multilabel": ("early", "even")}.get(kind, ())
    tables = {}
    sets = {"train": cohort(1000, 70, 1) + cohort(2000, 50, 2), "tuning": cohort(3000, 30, 3)}
    for split, people in (sets | {"held_out": cohort(4000, 30, 4)}).items():
        last = [p.tokens[len(p.tokens) // 2] - 7 for p in people]
        columns = {
            "binary": {"boolean_value": [code < 4 for code in last]},
            "multiclass": {"integer_value": [code // 3 for code in last]},
            "multilabel": {"boolean_values": [[code < 4, None if code == 7 else code % 2 == 0] for code in last]},
            "regression": {"float_value": [code / 4 for code in last]},
            "survival": {"time_days": [(8.0 - code) / 4 for code in last], "event": [code != 3 for code in last]},
        }[kind]
        times = [p.times[len(p.times) // 2] for p in people]
        # Several tokens may share the prediction time; what is visible then ends with the last of them.
        keep = [p.times[len(p.times) // 2 + 1] > time for p, time in zip(people, times, strict=True)]
        table = pa.table(
            {
                "subject_id": pa.array([p.id for p in people], pa.int64()),
                "prediction_time": pa.array(times, pa.timestamp("us")),
                **columns,
            }
        )
        tables[split] = table.filter(pa.array(keep))
    folder.mkdir()
    question = Question(kind, names)
    write_label_folder(folder, Labels(kind, question, tables), Manifest("labels", 2, ["test==0"], {}))
    return folder, question


@pytest.mark.parametrize("kind", KINDS)
def test_finetuning_learns_every_kind_of_outcome_and_keeps_its_question(job, tmp_path, kind):
    folder, question = labels_of_kind(tmp_path / "labels", kind)
    found = applied(dataclasses.replace(job, labels=folder), FinetunedConfig(**FAST, max_epochs=8), "held_out")
    truth = read_labels(folder).array("held_out")
    run = Run(job.output / "run")
    assert run.question == question
    if kind == "binary":
        assert ((found > 0.5) == truth).mean() > 0.9
    elif kind == "multiclass":
        assert found.shape == (len(truth), 3)
        assert np.allclose(found.sum(1), 1)
        assert (found.argmax(1) == truth).mean() > 0.8
    elif kind == "multilabel":
        known = ~np.isnan(truth)
        assert found.shape == truth.shape
        assert ((found > 0.5) == truth)[known].mean() > 0.8
    elif kind == "regression":
        assert np.square(found - truth).mean() < 0.3 * truth.var()
    else:
        assert np.corrcoef(found, -np.log(truth[:, 0]))[0, 1] > 0.6, "the higher the risk, the sooner the event"


def test_the_objective_follows_from_the_labels_and_its_settings_can_be_reached(job, tmp_path, monkeypatch):
    monkeypatch.setitem(finetuned.OBJECTIVES, "binary", "tiny_binary")
    labels = read_labels(job.labels)

    def objective(asked):
        return build("predictor", FinetunedConfig(objective=asked)).training(job, labels, tmp_path).objective

    assert objective(None).name == "tiny_binary"
    assert objective({"name": "tiny_binary", "weight": 2.0}).weight == 2.0
    assert finetuned.OBJECTIVES["survival"] == "survival"
    with pytest.raises(ConfigError, match=r"objective tiny_binary has no setting 'wait'. Did you mean weight"):
        objective({"name": "tiny_binary", "wait": 2.0})
    with pytest.raises(ConfigError, match="no objective is named 'tiny'"):
        objective("tiny")
    with pytest.raises(ConfigError, match="no adapter is named 'lorra'"):
        build("predictor", FinetunedConfig(adapter="lorra"))
    with pytest.raises(ConfigError, match="objective tiny_next learns from no labels; for these labels choose"):
        objective("tiny_next")


def test_finetuning_reaches_trackers_and_takes_the_strategy_and_a_tracker_never_trains_again(job, tmp_path):
    settings = FinetunedConfig(**FAST, max_steps=4)
    watched = dataclasses.replace(job, trackers={"j": JsonlConfig()}, stage="finetuned/one", strategy=SingleConfig())
    build("predictor", settings).fit(watched)
    run = Run(job.output / "run")
    lines = (run.path / "logs" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [entry["step"] for entry in run.history]
    assert run.settings["strategy"]["name"] == "single"
    assert run.manifest.content["stage"] == "finetuned/one"
    before = (job.work / "run" / "summary.json").stat().st_mtime_ns
    build("predictor", settings).fit(dataclasses.replace(watched, trackers={}, output=tmp_path / "again"))
    assert (job.work / "run" / "summary.json").stat().st_mtime_ns == before


def test_without_tuning_labels_finetuning_says_that_it_does_not_stop_early(job, labels, tmp_path, capsys):
    folder = tmp_path / "train_alone"
    write_labels(folder / "train.parquet", read_labels(labels).tables["train"])
    settings = FinetunedConfig(**FAST, max_steps=3)
    build("predictor", settings).fit(dataclasses.replace(job, labels=folder))
    assert "no tuning labels, so training does not stop early" in capsys.readouterr().err
    assert read_json(job.output / "run" / "summary.json")["steps"] == 3


def test_finetuning_needs_enough_labels_of_both_classes(job, labels, tmp_path):
    table = read_labels(labels).tables["train"]

    def reason(folder, split, table, match):
        write_labels(folder / f"{split}.parquet", table)
        with pytest.raises(NotApplicable, match=match):
            build("predictor", FinetunedConfig()).fit(dataclasses.replace(job, labels=folder))

    reason(tmp_path / "a", "tuning", table, "no labels of the train split")
    one_class = table.set_column(2, "boolean_value", pa.array([False] * len(table)))
    reason(tmp_path / "b", "train", one_class, "all but 0 are of one class")
    reason(tmp_path / "c", "train", table.slice(0, 12), "12 train labels are too few to fine-tune on; at least 20")


def test_the_labels_of_these_tests_have_both_classes(labels):
    assert 20 < read_labels(labels).array("train").sum() < 100
