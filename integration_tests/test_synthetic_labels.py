"""The labels that a synthetic cohort is drawn with are those that the tasks find in its events."""

import shutil
from pathlib import Path

import polars as pl
import pytest
from ehr_core.cli import run
from ehr_core.errors import DataError
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build, registry

TASKS = ("in_hospital_mortality", "readmission_30d")
COLUMNS = ["subject_id", "prediction_time", "boolean_value"]


def draw(folder: Path, **settings) -> Path:
    folder.mkdir()
    source = registry().get("source", "synthetic").config(num_subjects=900, shard_subjects=250, **settings)
    build("source", source).provide(folder, build("executor", SerialConfig()))
    return folder


def label(meds: Path, output: Path, tasks: tuple[str, ...]) -> None:
    run("ehr-eval", "label", ["source=meds", f"source.path={meds}", f"task=[{','.join(tasks)}]", f"output={output}"])


def table(folder: Path, task: str, split: str) -> pl.DataFrame:
    found = pl.read_parquet(folder / task / f"{split}.parquet")
    return found.with_columns(pl.col("prediction_time").cast(pl.Datetime("us"))).sort(COLUMNS[:2])


@pytest.mark.parametrize(
    "settings",
    [{"seed": 1}, {"seed": 2, "mortality_scale": 5.0, "readmission_scale": 5.0}, {"seed": 3, "missingness": 0.9}],
    ids=["usual", "many outcomes", "little measured"],
)
def test_drawn_and_computed_labels_are_the_same(tmp_path, settings):
    cohort = draw(tmp_path / "cohort", **settings)
    bare = tmp_path / "bare"  # without its own labels, so that nothing can be taken from them
    shutil.copytree(cohort, bare, ignore=shutil.ignore_patterns("labels"))
    run(
        "ehr-eval",
        "label",
        ["source=meds", f"source.path={bare}", f"task=[{','.join(TASKS)}]", f"output={tmp_path}/out"],
    )
    for task in TASKS:
        for split in ("train", "tuning", "held_out"):
            drawn, computed = table(cohort / "labels", task, split), table(tmp_path / "out", task, split)
            assert computed.columns == COLUMNS
            assert drawn.select(COLUMNS).equals(computed), f"{task} {split}"
        whole = table(cohort / "labels", task, "train")
        assert 0 < whole["boolean_value"].sum() < len(whole)
        assert len(whole) > 500


def test_labels_that_do_not_agree_with_the_events_are_refused(tmp_path):
    cohort = draw(tmp_path / "cohort", seed=1)
    path = cohort / "labels" / TASKS[0] / "train.parquet"
    turned = pl.read_parquet(path).with_columns(
        pl.when(pl.int_range(pl.len()) == 7)
        .then(~pl.col("boolean_value"))
        .otherwise("boolean_value")
        .alias("boolean_value")
    )
    turned.write_parquet(path)
    with pytest.raises(DataError, match="does not agree with the task: 1 rows only from the task, 1 only in the file"):
        run(
            "ehr-eval",
            "label",
            ["source=meds", f"source.path={cohort}", f"task=[{TASKS[0]}]", f"output={tmp_path}/out"],
        )
