"""What a dry run says about size and time, from a sample of the records, against what the run then does."""

import re

import ehr
import pytest
from ehr_train.runner import sizing

SETTINGS = [
    "model.num_layers=1",
    "model.width=32",
    "model.num_heads=2",
    "model.context_length=128",
    "train.max_epochs=2",
    "train.batch_size=8",
    "predictors=finetuned",
    "predictors.finetuned.max_epochs=2",
    "evaluation.num_bootstrap=20",
]
READMISSION = "task=readmission_30d"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A cohort with many more events than the sample of these tests."""
    folder = tmp_path_factory.mktemp("sizes") / "records"
    ehr.make("source=synthetic", "source.num_subjects=240", f"output={folder}")
    return folder


def numbers(lines, pattern):
    (found,) = (re.search(pattern, line) for line in lines if re.search(pattern, line))
    return [int(number.replace(",", "")) for number in found.groups()]


PRETRAIN = r"pretrain: ([\d,]+) parameters .* ([\d,]+) steps of 8 rows, ([\d,]+) tokens"
TUNED = r"readmission_30d, finetuned: at most ([\d,]+) steps of 16 rows, about"


def lines_of(records, output, capfd, *more):
    ehr.run("source=meds", f"source.path={records}", f"output={output}", *SETTINGS, *more)
    return capfd.readouterr().err.splitlines()


def test_a_dry_run_on_a_sample_says_what_the_run_on_all_then_has(records, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sizing, "SAMPLE", 8_000)
    dry = lines_of(records, tmp_path / "out", capfd, READMISSION, "dry_run=true")
    assert not (tmp_path / "out").exists()
    assert any("judged from" in line for line in dry)
    wet = lines_of(records, tmp_path / "out", capfd, READMISSION)
    assert not any("judged from" in line for line in wet)
    for pattern in (PRETRAIN, TUNED):
        assert numbers(dry, pattern) == pytest.approx(numbers(wet, pattern), rel=0.25)
    assert any(re.search(r"tokens and models: about [\d.]+ (s|min) in all", line) for line in dry)


def test_a_dry_run_takes_the_users_own_labels_of_the_sample(records, tmp_path, capfd, monkeypatch):
    ehr.label("source=meds", f"source.path={records}", READMISSION, f"output={tmp_path / 'labels'}")
    monkeypatch.setattr(sizing, "SAMPLE", 8_000)
    dry = lines_of(records, tmp_path / "out", capfd, READMISSION, "dry_run=true")
    given = lines_of(records, tmp_path / "out", capfd, f"labels={tmp_path / 'labels'}", "dry_run=true")
    assert numbers(given, TUNED) == numbers(dry, TUNED)


def test_a_dry_run_that_cannot_judge_says_why(records, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sizing, "SAMPLE", 1)
    asked = ["objective=classification", "task=in_hospital_mortality", "dry_run=true"]
    dry = lines_of(records, tmp_path / "out", capfd, *asked)
    assert any("cannot be judged from a sample of the records: " in line for line in dry)


def test_a_dry_run_on_a_store_that_is_there_learns_vectors_of_its_own(records, tmp_path, capfd):
    ehr.tokenize("source=meds", f"source.path={records}", f"output={tmp_path / 'store'}")
    given = [part for part in SETTINGS if not part.startswith(("predictors", "evaluation"))]
    asked = ["model=bert", "objective=masked", "embedding=ppmi", "embedding.width=24", "dry_run=true"]
    ehr.run(f"store={tmp_path / 'store'}", *given, *asked)
    (found,) = numbers(capfd.readouterr().err.splitlines(), r"pretrain: ([\d,]+) parameters")
    ehr.run(f"store={tmp_path / 'store'}", *given, *asked[:2], "dry_run=true")
    (plain,) = numbers(capfd.readouterr().err.splitlines(), r"pretrain: ([\d,]+) parameters")
    assert found != plain
