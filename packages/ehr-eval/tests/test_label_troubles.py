"""Faults of labels are found before any work, what is odd is said everywhere, and no predictor ends the others."""

import json

import polars as pl
import pytest
from ehr_core.errors import DataError, FormatError, NotApplicable
from ehr_core.formats.folder import read_manifest
from ehr_eval import commands
from ehr_eval.applying import apply
from ehr_eval.benchmarking import benchmark
from ehr_eval.evaluation import evaluate
from ehr_eval.label_notes import describe_labels
from ehr_eval.labelling import label
from ehr_eval.predicting import fit, predict
from ehr_eval.settings import (
    ApplyConfig,
    BenchmarkConfig,
    EvaluateConfig,
    FeaturesConfig,
    FitConfig,
    LabelConfig,
    LogisticConfig,
    PredictConfig,
)
from ehr_eval.task_settings import NextDiagnosesConfig, Readmission30dConfig
from ehr_eval.user_labels import read_user_labels

SPLITS = {"train": range(1, 180), "tuning": range(180, 220), "held_out": range(220, 261)}


@pytest.fixture
def write(at, tmp_path):
    """Labels of a subject each at day 30; ``change`` may change the rows of a split."""

    def make(change=lambda split, rows: rows, column="boolean_value", kind=pl.Boolean):
        for split, subjects in SPLITS.items():
            rows = change(split, [(subject, at(30), subject % 3 == 0) for subject in subjects])
            schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), column: kind}
            table = pl.DataFrame(rows, schema, orient="row")
            (tmp_path / "given").mkdir(exist_ok=True)
            table.write_parquet(tmp_path / "given" / f"{split}.parquet")
        return tmp_path / "given"

    return make


def in_split(which, change):
    return lambda split, rows: change(rows) if split == which else rows


def first_in(year):
    return lambda rows: [(rows[0][0], rows[0][1].replace(year=year), True), *rows[1:]]


FAULTS = {
    "twice": (in_split("held_out", lambda rows: [*rows, rows[0]]), "1 samples are there more than once"),
    "contradicting": (in_split("train", lambda rows: [*rows, (*rows[0][:2], True)]), "1 of them with another outcome"),
    "unknown subject": (in_split("train", lambda rows: [*rows, (999, *rows[0][1:])]), "1 of 180 subjects are not in"),
    "wrong split": (in_split("train", lambda rows: [*rows, (230, *rows[0][1:])]), "are in another split"),
    "nobody": (lambda split, rows: [], "there is no label of the split 'train'"),
    "nobody to learn from": (in_split("train", lambda rows: []), "there is no label of the split 'train'"),
    "nobody to score": (in_split("held_out", lambda rows: []), "there is no sample in the splits held_out"),
    "one class": (in_split("train", lambda rows: [(*row[:2], False) for row in rows]), "have one class only"),
    "a century late": (in_split("tuning", first_in(2120)), "1 of 260 samples are asked more than 365 days after"),
    "before birth": (in_split("tuning", first_in(1820)), "1 of 260 samples are asked more than 365 days before"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_labels_is_found_before_any_work(parts, tiny, write, tmp_path, fault):
    change, message = FAULTS[fault]
    given = {"source": parts.source(path=tiny), "labels": write(change), "output": tmp_path / "out"}
    commands = [lambda: benchmark(BenchmarkConfig(**given, num_bootstrap=0))]
    if fault != "nobody to score":
        commands += [lambda: fit(FitConfig(**given)), lambda: predict(PredictConfig(**given))]
    for command in commands:
        with pytest.raises(DataError, match=message) as error:
            command()
        assert "given" in str(error.value)
        assert not (tmp_path / "out").exists()


def test_applying_finds_faults_before_any_work_as_well(parts, tiny, write, tmp_path):
    source = parts.source(path=tiny)
    (fitted,) = fit(FitConfig(source=source, labels=write(), output=tmp_path / "f"))
    for fault in ("contradicting", "unknown subject", "a century late"):
        change, message = FAULTS[fault]
        with pytest.raises(DataError, match=message):
            apply(ApplyConfig(source=source, fitted=fitted.path, labels=write(change), output=tmp_path / "out"))
        assert not (tmp_path / "out").exists()
    nobody = write(lambda split, rows: [])
    with pytest.raises(DataError, match="there is no sample"):
        apply(ApplyConfig(source=source, fitted=fitted.path, labels=nobody, output=tmp_path / "out"))


def test_a_subject_in_two_files_is_refused_wherever_records_are_read(parts, tiny, write, tmp_path):
    train = pl.read_parquet(tiny / "data/train/0.parquet")
    train.filter(pl.col("subject_id") == 1).write_parquet(tiny / "data/held_out/1.parquet")
    given = {"source": parts.source(path=tiny), "output": tmp_path / "out"}
    for command in (
        lambda: label(LabelConfig(**given, task={"readmission_30d": Readmission30dConfig()})),
        lambda: benchmark(BenchmarkConfig(**given, labels=write())),
    ):
        with pytest.raises(DataError, match=r"train/0\.parquet and .*held_out/1\.parquet"):
            command()


# -- what is said


def test_what_cannot_be_chosen_or_scored_is_said_in_terminal_file_and_report(parts, tiny, write, tmp_path, capsys):
    def change(split, rows):
        if split == "tuning":
            return []
        return [(*row[:2], row[2] and split == "train") for row in rows]

    given = {"source": parts.source(path=tiny), "labels": write(change), "output": tmp_path / "out"}
    done = benchmark(BenchmarkConfig(**given, num_bootstrap=0))
    lines = [
        "given: all samples of the split 'held_out' have one class, so scores that compare are not defined on it",
        "given: there is no sample of the split 'tuning', so nothing is chosen, or stopped early, by it",
    ]
    said, page = capsys.readouterr().err, done.report.read_text()
    kept = read_manifest(tmp_path / "out/predictions/given/logistic", "predictions", 1).content["notes"]
    for line in lines:
        assert f"note: {line}" in said
        assert line in kept
        assert line.replace("'", "&#x27;") in page
    assert done.scores.value("given", "logistic", "auroc") is None


def test_classes_that_skip_are_counted_and_named(write, tiny):
    def change(split, rows):
        return [(*row[:2], [0, 2, 5][row[0] % 3]) for row in rows]

    (found,) = read_user_labels(write(change, "integer_value", pl.Int64), tiny).values()
    assert "given: 3 of 6 classes have no sample of the split 'train': 1, 3, 4" in found.content["notes"]
    (found,) = read_user_labels(write(change, "integer_value", pl.Int64), tiny, fit=False).values()
    assert "given: 3 of 6 classes have no sample at all: 1, 3, 4" in found.content["notes"]


def test_odd_times_are_counted_in_the_manifest_of_the_labels(parts, tiny, write, at, tmp_path):
    early = in_split("train", lambda rows: [(row[0], at(-1) if row[0] < 4 else row[1], row[2]) for row in rows])
    predict(PredictConfig(source=parts.source(path=tiny), labels=write(early), output=tmp_path / "out"))
    content = read_manifest(tmp_path / "out/labels/given", "labels", 2).content
    assert content["times"]["unseen"] == 3
    assert any("3 of 260 samples are asked before the patient's first event" in note for note in content["notes"])


def test_a_group_of_codes_that_matched_nothing_is_named(parts, dataset, events, tmp_path, capsys):
    def records(subject, code):
        stay = [(subject, day, f"HOSPITAL_{what}") for day, what in ((0, "ADMISSION"), (3, "DISCHARGE"))]
        again = [(subject, 10 + day, code) for _, day, code in stay]
        return [events([*stay, *again, (subject, 11, code), (subject, 2000, "CLINIC")])]

    meds = dataset(
        tmp_path / "m", train=records(1, "DX//A1"), tuning=records(2, "DX//A2"), held_out=records(3, "DX//B")
    )
    tasks = {
        "codes": NextDiagnosesConfig(systems=["DX//"], groups={"some": ["A"], "none": ["C"]}),
        "nobody": NextDiagnosesConfig(systems=["DX//"], groups={"some": ["A"]}, horizon_days=1.0),
    }
    commands.label(LabelConfig(source=parts.source(path=meds), task=tasks, output=tmp_path / "l"))
    said = capsys.readouterr().err
    assert "note: codes: 1 of 2 labels have no sample at all: none" in said
    assert "note: nobody: there is no sample" in said
    for task in tasks:
        assert read_manifest(tmp_path / "l" / task, "labels", 2).content["notes"]


def test_ordinary_labels_have_no_notes_of_their_own(write, tiny):
    (found,) = read_user_labels(write(), tiny).values()
    assert describe_labels(found) == []


# -- predictors


def test_a_predictor_whose_numbers_cannot_be_ends_no_other(parts, tiny, write, tmp_path):
    predictors = {"steady": parts.steady(no_number=True), "refusing": parts.refusing(), "logistic": LogisticConfig()}
    settings = BenchmarkConfig(
        source=parts.source(path=tiny), labels=write(), predictors=predictors, output=tmp_path / "out", num_bootstrap=0
    )
    done = benchmark(settings)
    reason = "its predictions cannot be: 81 values of predicted_boolean_probability are not in [0, 1]"
    assert f"given, steady: not applicable: {reason}" in done.notes
    assert reason in done.report.read_text()
    assert json.loads((tmp_path / "out/predictions/given/steady/not_applicable.json").read_text())["reason"] == reason
    assert {row["predictor"] for row in done.scores.scores} == {"logistic"}


def test_predictions_without_a_row_of_the_split_are_not_scored(parts, tiny, write, tmp_path):
    predict(PredictConfig(source=parts.source(path=tiny), labels=write(), output=tmp_path / "out", splits=["tuning"]))
    with pytest.raises(DataError, match="has no prediction of the split 'held_out'; choose one with split=NAME"):
        evaluate(EvaluateConfig(predictions=tmp_path / "out/predictions", output=tmp_path / "scores"))


@pytest.mark.parametrize(("share", "refused"), [(0.9, True), (0.2, False)])
def test_records_most_of_whose_codes_no_feature_knows_are_refused_unless_the_limit_is_raised(
    parts, tiny, write, dataset, patients, tmp_path, capsys, share, refused
):
    source, features = parts.source(path=tiny), FeaturesConfig(min_count=2)
    (fitted,) = fit(FitConfig(source=source, labels=write(), features=features, output=tmp_path / "f"))
    events = patients(range(1000, 1040), 9)
    strange = pl.int_range(pl.len()) % 10 < share * 10
    other = events.with_columns(code=pl.when(strange).then("XX//" + pl.col("code")).otherwise("code"))
    site = parts.source(path=dataset(tmp_path / "site", held_out=[other]))

    def ask(**more):
        return apply(ApplyConfig(source=site, fitted=fitted.path, output=tmp_path / "out", **more))

    if refused:
        with pytest.raises(FormatError, match=r"logistic see \d+\.\d% .* With max_unknown above 0.5 it is applied"):
            ask()
        assert not (tmp_path / "out").exists()
    found = ask(max_unknown=1.0) if refused else ask()
    assert len(found) == 40
    notes = read_manifest(tmp_path / "out", "predictions", 1).content["notes"]
    assert any("the features of logistic see" in note for note in notes)
    assert "note: the features of logistic see" in capsys.readouterr().err


def test_what_could_not_be_fitted_is_a_reason_and_not_an_empty_report(parts, tiny, write, tmp_path):
    settings = BenchmarkConfig(
        source=parts.source(path=tiny), labels=write(), predictors={"refusing": parts.refusing()}, output=tmp_path / "o"
    )
    assert benchmark(settings).notes == ["given, refusing: not applicable: this cohort has no such code"]
    fitted = tmp_path / "o/fitted/given/refusing"
    asked = ApplyConfig(source=parts.source(path=tiny), fitted=fitted, labels=write(), output=tmp_path / "a")
    with pytest.raises(NotApplicable, match="this cohort has no such code"):
        apply(asked)
