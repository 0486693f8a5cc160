"""What ``ehr-train`` refuses of labels before any work, and the labels of ACES and meds-testing-helpers."""

from datetime import datetime

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core import config
from ehr_core.errors import DataError
from ehr_core.formats.labels import read_labels
from ehr_eval.user_labels import read_user_labels
from ehr_train.runner.command import run

SPLITS = {"train": range(1, 31), "tuning": range(101, 131), "held_out": range(201, 231)}
ASKED, LATE = datetime(2020, 2, 1), datetime(2120, 1, 1)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records") / "meds"
    for split, subjects in SPLITS.items():
        rows = [
            row
            for subject in subjects
            for row in (
                (subject, datetime(1960, 6, 15), "MEDS_BIRTH", None),
                (subject, datetime(2020, 1, 1), "LAB//K", float(subject % 5)),
                (subject, datetime(2020, 1, 9), "NOTE", None),
                (subject, datetime(2020, 3, 9), "NOTE", None),
            )
        ]
        schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
        (folder / "data" / split).mkdir(parents=True)
        pl.DataFrame(rows, schema, orient="row").write_parquet(folder / "data" / split / "0.parquet")
    return folder


def write(folder, change=lambda split, rows: rows):
    for split, subjects in SPLITS.items():
        rows = change(split, [(subject, ASKED, subject % 2 == 0) for subject in subjects])
        schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "boolean_value": pl.Boolean}
        folder.mkdir(exist_ok=True)
        pl.DataFrame(rows, schema, orient="row").write_parquet(folder / f"{split}.parquet")
    return folder


def in_split(which, change):
    return lambda split, rows: change(rows) if split == which else rows


FAULTS = {
    "twice": (in_split("held_out", lambda rows: [*rows, rows[0]]), "1 samples are there more than once"),
    "unknown": (in_split("train", lambda rows: [*rows, (999, ASKED, True)]), "1 of 31 subjects are not in the dataset"),
    "nobody to score": (in_split("held_out", lambda rows: []), "there is no sample in the splits held_out"),
    "one class": (in_split("train", lambda rows: [(*row[:2], True) for row in rows]), "have one class only"),
    "late": (
        in_split("tuning", lambda rows: [(r[0], datetime(2120, 1, 1), r[2]) for r in rows]),
        "30 of 90 samples are",
    ),
    "nobody": (lambda split, rows: [], "there is no label of the split 'train'"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dry", ["true", "false"])
def test_a_fault_of_labels_ends_a_run_before_it_begins(records, tmp_path, fault, dry):
    change, message = FAULTS[fault]
    labels = write(tmp_path / "labels", change)
    given = [
        "source=meds",
        f"source.path={records}",
        f"labels={labels}",
        f"output={tmp_path / 'out'}",
        f"dry_run={dry}",
    ]
    settings = config.to_settings(config.compose("train", [*given, "predictors=[logistic]", "world_size=1"]))
    with pytest.raises(DataError, match=message):
        run(settings)
    assert not (tmp_path / "out").exists()


# -- ACES, as es-aces 0.7.3 writes labels: COHORT/<task>.yaml, COHORT/<task>/<shard>.parquet, COHORT/<task>/.logs/

ACES = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("boolean_value", pa.bool_()),
        ("integer_value", pa.int64()),
        ("float_value", pa.float32()),
        ("categorical_value", pa.string()),
    ]
)


def aces(path, subjects):
    """A shard of ACES; it has all label columns of MEDS, null but the one that is used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"subject_id": s, "prediction_time": ASKED, "boolean_value": s % 2 == 0} for s in subjects]
    pq.write_table(pa.Table.from_pylist(rows, ACES), path)


@pytest.fixture
def cohort(tmp_path):
    """The folder of a cohort, with what ACES leaves beside labels."""
    (tmp_path / "cohort" / "task" / ".logs" / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "cohort" / "task.yaml").write_text("predicates: {}\n")
    (tmp_path / "cohort" / "task" / ".logs" / "multirun.yaml").write_text("hydra: {}\n")
    return tmp_path / "cohort"


def counts(found):
    return {split: len(found.tables[split]) for split in found.splits}


def test_labels_of_aces_sharded_by_split(records, cohort):
    for split, subjects in SPLITS.items():
        aces(cohort / "task" / split / "0.parquet", subjects[:20])
        aces(cohort / "task" / split / "1.parquet", subjects[20:])
    aces(cohort / "task" / "train" / "2.parquet", [])
    for folder in (cohort, cohort / "task"):
        (found,) = read_user_labels(folder, records).values()
        assert (found.name, found.asked().kind, counts(found)) == ("task", "binary", dict.fromkeys(SPLITS, 30))


def test_labels_of_aces_for_flat_shards_and_for_one_file(records, cohort):
    everyone = [subject for subjects in SPLITS.values() for subject in subjects]
    aces(cohort / "task" / "0.parquet", everyone[:50])
    aces(cohort / "task" / "1.parquet", everyone[50:])
    (found,) = read_user_labels(cohort / "task", records).values()
    assert counts(found) == dict.fromkeys(SPLITS, 30)
    aces(cohort / "alone.parquet", everyone)
    (alone,) = read_user_labels(cohort / "alone.parquet", records).values()
    assert [table.to_pydict() for table in alone.tables.values()] == [t.to_pydict() for t in found.tables.values()]


def test_labels_of_aces_without_an_index_timestamp_have_no_time_and_are_refused(records, cohort):
    aces(cohort / "task" / "0.parquet", [1, 2])
    table = pq.read_table(cohort / "task" / "0.parquet")
    pq.write_table(
        table.set_column(1, "prediction_time", pa.nulls(2, pa.timestamp("us"))), cohort / "task" / "0.parquet"
    )
    with pytest.raises(DataError, match=r"0\.parquet: column 'prediction_time' of the labels has 2 nulls"):
        read_user_labels(cohort, records)


def test_window_statistics_of_aces_count_events_which_are_no_truth_values(tmp_path):
    summary = {"window_name": "target.end", "timestamp_at_start": ASKED, "timestamp_at_end": ASKED, "death": 2}
    row = {
        "subject_id": 1,
        "prediction_time": ASKED,
        "boolean_value": 2,
        "trigger": ASKED,
        "target.end_summary": summary,
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "task.parquet")
    with pytest.raises(DataError, match="'boolean_value' has 1 values that are neither 0 nor 1"):
        read_labels(tmp_path / "task.parquet", split_of={1: "train"})
    pq.write_table(pa.Table.from_pylist([row | {"boolean_value": 1}]), tmp_path / "task.parquet")
    assert read_labels(tmp_path / "task.parquet", split_of={1: "train"}).array("train").tolist() == [1]


def test_labels_of_meds_testing_helpers_are_shards_of_any_name(records, tmp_path):
    # Version 0.3.1 writes task_labels/<task>/labels_A.parquet.parquet, and .task_names.json beside the tasks.
    folder = tmp_path / "task_labels"
    aces(folder / "boolean_value_task" / "labels_A.parquet.parquet", SPLITS["train"])
    aces(folder / "boolean_value_task" / "labels_B.parquet.parquet", [*SPLITS["tuning"], *SPLITS["held_out"]])
    (folder / ".task_names.json").write_text('["boolean_value_task"]')
    (found,) = read_user_labels(folder, records).values()
    assert (found.name, counts(found)) == ("boolean_value_task", dict.fromkeys(SPLITS, 30))


def test_aces_itself_gives_labels_that_are_read(records, tmp_path):
    """Where es-aces is installed, which needs packages that are not ours."""
    run_aces = pytest.importorskip("aces.query", reason="es-aces is not installed")
    from aces.config import TaskExtractorConfig
    from aces.predicates import get_predicates_df
    from aces.run import get_and_validate_label_schema
    from omegaconf import OmegaConf

    (tmp_path / "task.yaml").write_text(
        "predicates:\n  lab: {code: LAB//K}\n  note: {code: NOTE}\ntrigger: lab\nwindows:\n"
        "  input: {start: null, end: trigger, start_inclusive: True, end_inclusive: True, index_timestamp: end}\n"
        "  target: {start: input.end, end: start + 30d, start_inclusive: False, end_inclusive: True, label: note}\n"
    )
    task = TaskExtractorConfig.load(tmp_path / "task.yaml")
    for split in SPLITS:
        data = OmegaConf.create(
            {"standard": "meds", "path": str(records / "data" / split / "0.parquet"), "ts_format": None}
        )
        made = run_aces.query(task, get_predicates_df(task, data))
        made = made.rename({"index_timestamp": "prediction_time", "label": "boolean_value"})
        (tmp_path / "made" / split).mkdir(parents=True)
        pq.write_table(get_and_validate_label_schema(made), tmp_path / "made" / split / "0.parquet")
    found = read_labels(tmp_path / "made")
    assert counts(found) == dict.fromkeys(SPLITS, 30)
    assert found.array("train").all()
    assert found.tables["train"]["prediction_time"][0].as_py() == datetime(2020, 1, 1)
