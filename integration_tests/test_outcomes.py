"""Every kind of outcome from the command line to a report, and what was fitted there on other patients."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import ehr
import numpy as np
import polars as pl
import pytest
from ehr_core.errors import EhrError, FormatError
from ehr_core.formats.predictions import read_predictions
from ehr_core.formats.run import Run

SCRIPTS = Path(sys.executable).parent
MODEL = ["model.num_layers=1", "model.width=32", "model.num_heads=2", "model.context_length=128"]
SMALL = [*MODEL, "train.max_steps=12", "train.batch_size=8", "evaluation.num_bootstrap=20"]
KINDS = {
    "in_hospital_mortality": ("binary", {"auroc", "auprc", "brier", "log_loss", "f1"}, "logistic"),
    "length_of_stay_class": ("multiclass", {"log_loss", "accuracy", "macro_f1", "macro_auroc"}, "logistic"),
    "next_diagnoses": ("multilabel", {"macro_auroc", "micro_auroc"}, "logistic"),
    "length_of_stay": ("regression", {"mae", "rmse", "r2"}, "linear"),
    "time_to_death": ("survival", {"c_index"}, "cox"),
}
"""Task to its kind of outcome, the metrics that speak it, and our baseline for it."""


def call(folder, script, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with OUT, where a model was pretrained and fine-tuned for all kinds, and NEW, other patients."""
    folder = tmp_path_factory.mktemp("outcomes")
    predictors = "finetuned,xgboost,logistic,linear,cox"
    call(
        folder, "ehr-train", "source.num_subjects=500", *SMALL, f"task=[{','.join(KINDS)}]",
        f"predictors=[{predictors}]", "predictors.finetuned.max_steps=6", "predictors.xgboost.num_rounds=60",
        "output=OUT",
    )  # fmt: skip
    call(folder, "ehr-tokenize", "make", "source=synthetic", "source.num_subjects=40", "source.seed=9", "output=NEW")
    return folder


def scores(world):
    return json.loads((world / "OUT" / "scores.json").read_text())["scores"]


@pytest.mark.parametrize("task", KINDS)
def test_a_kind_of_outcome_is_labelled_learned_scored_and_reported(world, task):
    kind, metrics, baseline = KINDS[task]
    rows = [row for row in scores(world) if row["task"] == task]
    assert {row["kind"] for row in rows} == {kind}
    assert {row["metric"] for row in rows} == metrics
    assert {row["predictor"] for row in rows} == {"finetuned", "xgboost", baseline, "ceiling"}
    for row in rows:
        assert row["value"] is not None
        assert math.isfinite(row["value"])
    assert task in (world / "OUT" / "report.html").read_text()


def test_baselines_find_what_the_generator_put_into_the_records(world):
    found = {(row["task"], row["predictor"], row["metric"]): row["value"] for row in scores(world)}
    assert found["time_to_death", "xgboost", "c_index"] > 0.65
    assert found["in_hospital_mortality", "logistic", "auroc"] > 0.65
    assert found["length_of_stay", "ceiling", "r2"] > 0.02


@pytest.mark.parametrize(("task", "predictor"), [("time_to_death", "finetuned"), ("next_diagnoses", "xgboost")])
def test_what_was_fitted_is_applied_to_new_patients_without_labels(world, tmp_path, task, predictor):
    fitted = world / "OUT" / "fitted" / task / predictor
    call(tmp_path, "ehr-eval", "apply", f"fitted={fitted}", "source=meds", f"source.path={world / 'NEW'}", "output=A")
    now = read_predictions(tmp_path / "A" / "predictions.parquet")
    assert len(now) == 40
    assert not now.labelled
    whom = now.table.select(["subject_id", "prediction_time"]).slice(0, 7)
    pl.from_arrow(whom).write_csv(tmp_path / "whom.csv")
    arguments = [f"fitted={fitted}", "source=meds", f"source.path={world / 'NEW'}", "labels=whom.csv", "output=B"]
    call(tmp_path, "ehr-eval", "apply", *arguments)
    some = read_predictions(tmp_path / "B" / "predictions.parquet")
    both = pl.from_arrow(some.table).join(pl.from_arrow(now.table), on=["subject_id", "prediction_time"])
    column = now.table.column_names[-1]
    assert len(both) == 7
    one, two = (np.array(both[name].to_list(), float) for name in (column, f"{column}_right"))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_notebook_does_the_same_in_a_few_lines(world):
    model = ehr.load(world / "OUT" / "fitted" / "length_of_stay" / "finetuned")
    found = model.predict(world / "NEW")
    assert found.prediction.shape == (40,)
    assert 0 < found.prediction.mean() < 20
    states = model.represent(world / "NEW", found.table.select(["subject_id", "prediction_time"]))
    assert states.shape == (40, 32)
    assert np.abs(states - states.mean(0)).max() > 0.01
    asked = pl.from_arrow(found.table).select("subject_id", "prediction_time").sample(12, seed=3)
    subjects = asked["subject_id"].to_list()
    assert subjects != sorted(subjects)
    place = [found.table["subject_id"].to_pylist().index(subject) for subject in subjects]
    for whom in (asked, asked.lazy(), asked.to_pandas(), asked.to_dict(as_series=False)):
        some = model.predict(world / "NEW", whom)
        assert some.table["subject_id"].to_pylist() == subjects
        np.testing.assert_allclose(some.prediction, found.prediction[place], atol=1e-5)
        np.testing.assert_allclose(model.represent(world / "NEW", whom), states[place], atol=1e-4)
    with pytest.raises(EhrError, match="was not trained on labels"):
        ehr.load(world / "OUT" / "pretrain").predict(world / "NEW")
    with pytest.raises(FormatError, match="so it is neither a run nor a fitted predictor"):
        ehr.load(world)


@pytest.mark.slow
def test_trajectories_are_drawn_by_one_command_and_gone_on_with(world, tmp_path):
    arguments = [
        "run=" + str(world / "OUT" / "pretrain"), "source=meds", f"source.path={world / 'NEW'}", "splits=[held_out]",
        "generation.draws=3", "generation.max_new_tokens=12", "output=T",
    ]  # fmt: skip
    done = call(tmp_path, "ehr-eval", "generate", *arguments)
    assert done.stdout.strip() == "12 trajectories in T"
    drawn = pl.read_parquet(tmp_path / "T" / "part-*.parquet")
    assert drawn.group_by("subject_id").len()["len"].to_list() == [3] * 4
    assert drawn["tokens"].list.len().max() <= 12
    before = {path.name: path.read_bytes() for path in (tmp_path / "T").iterdir()}
    call(tmp_path, "ehr-eval", "generate", *arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "T").iterdir()} == before


def test_hidden_states_are_written_by_one_command(world, tmp_path):
    run = world / "OUT" / "pretrain"
    call(tmp_path, "ehr-eval", "represent", f"run={run}", "source=meds", f"source.path={world / 'NEW'}", "output=H")
    found = pl.read_parquet(tmp_path / "H" / "representations.parquet")
    assert found.columns == ["subject_id", "prediction_time", "split", "hidden"]
    assert np.array(found["hidden"].to_list()).shape == (40, 32)
    assert Run(run).digest in (tmp_path / "H" / "manifest.json").read_text()


def test_a_run_on_labels_is_applied_as_it_is_and_refuses_another_vocabulary(world, tmp_path):
    run = world / "OUT" / "fitted" / "time_to_death" / "finetuned" / "run"
    given = ["source=meds", f"source.path={world / 'NEW'}"]
    as_run = ehr.apply(f"fitted={run}", *given, f"output={tmp_path / 'A'}")
    as_fitted = ehr.apply(f"fitted={run.parent}", *given, f"output={tmp_path / 'B'}")
    np.testing.assert_array_equal(as_run.prediction, as_fitted.prediction)
    for path in (world / "NEW").rglob("data/*/*.parquet"):
        other = tmp_path / "other" / path.relative_to(world / "NEW")
        other.parent.mkdir(parents=True, exist_ok=True)
        pl.read_parquet(path).with_columns(code="X//" + pl.col("code")).write_parquet(other)
    with pytest.raises(FormatError, match="of the events of these records are unknown to what was trained"):
        ehr.load(run).predict(tmp_path / "other")
    with pytest.raises(FormatError, match=r"With max_unknown above 0\.5 it is applied all the same"):
        ehr.load(run).represent(tmp_path / "other")
