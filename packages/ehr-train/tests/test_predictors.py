import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ehr_core.errors import ConfigError, DataError, FormatError, NotApplicable
from ehr_core.formats.folder import write_json
from ehr_core.formats.run import Run
from ehr_core.formats.tables import read_labels, read_predictions, write_labels
from ehr_core.formats.tokens import TokenStore, prefix_tokens
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.plugins import build
from ehr_core.protocols import Outcome, PredictionJob
from ehr_train.job import TrainJob
from ehr_train.launch import train
from ehr_train.learner import load_run
from ehr_train.settings import DirectConfig, FinetunedConfig, TrainConfig

from .world import PREFIX, VOCABULARY

A_OR_B, C = (VOCABULARY["CODE//A"], VOCABULARY["CODE//B"]), (VOCABULARY["CODE//C"],)
OUTCOME = Outcome(positive=("CODE//A", "CODE//B"), negative=("CODE//C",))


@pytest.fixture(scope="module")
def run(tiny, store, tmp_path_factory):
    """A model that has learned a little."""
    output = tmp_path_factory.mktemp("runs") / "run"
    settings = TrainConfig(batch_size=8, max_steps=30, learning_rate=1e-2)
    return train(TrainJob(str(store), str(output), tiny.TinyConfig(), tiny.TinyNextConfig(), train=settings), 1)


@pytest.fixture
def job(run, store, labels, tmp_path):
    return PredictionJob(tmp_path, labels, tmp_path / "out", tmp_path / "work", store=store, run=run, outcome=OUTCOME)


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
    table = read_labels(labels, split)
    times = table["prediction_time"].cast(pa.int64()).to_pylist()
    return list(zip(table["subject_id"].to_pylist(), times, strict=True))


def predicted(job):
    return read_predictions(job.output / "predictions.parquet")


def test_direct_is_the_share_of_the_positive_codes_in_the_next_token(job, run, store, labels):
    build("predictor", DirectConfig(batch_size=3)).predict(job)
    _, learner = load_run(run, torch.device("cpu"))
    expected = []
    for split in ("tuning", "held_out"):
        for subject, time in rows_of(labels, split):
            p = next_token(learner, store, split, subject, time)
            expected.append(p[[*A_OR_B]].sum() / (p[[*A_OR_B]].sum() + p[[*C]].sum()))
    found = predicted(job)
    assert found["split"].to_pylist() == ["tuning"] * 30 + ["held_out"] * 30
    assert np.allclose(found["predicted_boolean_probability"].to_numpy(), expected, atol=1e-5)


def test_direct_with_a_horizon_looks_over_the_intervals_within_it(job, run, store, labels):
    outcome = dataclasses.replace(OUTCOME, horizon_days=20.0)
    build("predictor", DirectConfig()).predict(dataclasses.replace(job, outcome=outcome, splits=("held_out",)))
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
    assert np.allclose(predicted(job)["predicted_boolean_probability"].to_numpy(), expected, atol=1e-5)


def test_a_samples_prediction_does_not_depend_on_what_is_predicted_with_it(job, labels, tmp_path):
    build("predictor", DirectConfig(batch_size=16)).predict(dataclasses.replace(job, splits=("held_out",)))
    together = predicted(job)["predicted_boolean_probability"].to_numpy()
    table = read_labels(labels, "held_out")
    for number in (0, 11, 29):
        alone = tmp_path / str(number)
        write_labels(alone / "held_out.parquet", table.slice(number, 1))
        single = dataclasses.replace(job, labels=alone, output=tmp_path / f"out{number}")
        build("predictor", DirectConfig()).predict(single)
        found = predicted(single)["predicted_boolean_probability"].to_pylist()
        assert found == pytest.approx([together[number]], abs=1e-6)


def test_all_columns_of_the_labels_stay_and_so_does_their_order(job, labels):
    build("predictor", DirectConfig()).predict(dataclasses.replace(job, splits=("held_out",)))
    found = pq.read_table(job.output / "predictions.parquet")
    for name in ("subject_id", "prediction_time", "boolean_value", "note"):
        assert found[name].to_pylist() == read_labels(labels, "held_out")[name].to_pylist()


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (None, "name no task"),
        (Outcome(("NOWHERE",), ("CODE//C",)), r"no token stands for a positive code \(NOWHERE\)"),
        (Outcome(("CODE//A",), ()), r"no token stands for a negative code \(none given\)"),
    ],
)
def test_direct_says_why_it_cannot_answer(job, outcome, reason):
    with pytest.raises(NotApplicable, match=reason):
        build("predictor", DirectConfig()).predict(dataclasses.replace(job, outcome=outcome))


def test_a_horizon_without_interval_tokens_is_not_answered(job, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    write_json(copy / "tokenizer" / "tokenizer.json", {"state": {}})
    asked = dataclasses.replace(job, run=copy, outcome=dataclasses.replace(OUTCOME, horizon_days=30.0))
    with pytest.raises(NotApplicable, match="needs interval tokens"):
        build("predictor", DirectConfig()).predict(asked)


def test_labels_of_unknown_subjects_and_stores_of_another_vocabulary_are_refused(job, store, tmp_path):
    folder = tmp_path / "strange"
    table = read_labels(job.labels, "tuning")
    write_labels(folder / "tuning.parquet", table.set_column(0, "subject_id", pa.array(range(30), pa.int64())))
    with pytest.raises(DataError, match="30 of the 30 subjects"):
        build("predictor", DirectConfig()).predict(dataclasses.replace(job, labels=folder))
    other = tmp_path / "other"
    shutil.copytree(store, other)
    changed = Vocabulary([*VOCABULARY.tokens, Token("MORE", "code")])
    changed.save(other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["content"]["vocabulary"] = changed.digest
    write_json(other / "manifest.json", manifest)
    with pytest.raises(FormatError, match="tokenize with fitted="):
        build("predictor", DirectConfig()).predict(dataclasses.replace(job, store=other))


def test_finetuning_learns_a_question_that_the_visible_codes_answer(job, run):
    settings = FinetunedConfig(objective="tiny_binary", learning_rate=1e-2, max_epochs=8, batch_size=8)
    build("predictor", settings).predict(job)
    found = predicted(job).to_pylist()
    held_out = [row for row in found if row["split"] == "held_out"]
    right = [row["predicted_boolean_value"] == row["boolean_value"] for row in held_out]
    assert sum(right) >= 29
    tuned = Run(job.output / "run")
    assert "start" in tuned.manifest.inputs
    assert len(tuned.history) > 3
    before = (job.work / "run" / "summary.json").stat().st_mtime_ns
    build("predictor", settings).predict(dataclasses.replace(job, output=job.output.with_name("again")))
    assert (job.work / "run" / "summary.json").stat().st_mtime_ns == before, "trained again for nothing"
    assert read_predictions(job.output.with_name("again") / "predictions.parquet").to_pylist() == found


def test_finetuning_hands_pooling_and_dropout_to_an_objective_that_has_them():
    with pytest.raises(ConfigError, match="objective tiny_binary has no pooling"):
        build("predictor", FinetunedConfig(objective="tiny_binary", pooling="mean")).objective()
    pytest.importorskip("ehr_models", reason="ehr-models is not installed beside")
    found = build("predictor", FinetunedConfig(pooling="mean", dropout=0.3)).objective()
    assert (found.pooling, found.dropout) == ("mean", 0.3)
    assert build("predictor", FinetunedConfig()).objective().pooling == "last"


def test_finetuning_needs_enough_labels_of_both_classes(job, labels, tmp_path):
    table = read_labels(labels, "train")
    write_labels(tmp_path / "a" / "tuning.parquet", table)
    with pytest.raises(NotApplicable, match="no labels of the train split"):
        build("predictor", FinetunedConfig()).predict(dataclasses.replace(job, labels=tmp_path / "a"))
    one_class = table.set_column(2, "boolean_value", pa.array([False] * len(table)))
    write_labels(tmp_path / "b" / "train.parquet", one_class)
    with pytest.raises(NotApplicable, match="0 of the rarer class"):
        build("predictor", FinetunedConfig()).predict(dataclasses.replace(job, labels=tmp_path / "b"))


def test_the_labels_of_these_tests_have_both_classes(labels):
    assert 20 < sum(read_labels(labels, "train")["boolean_value"].to_pylist()) < 100
