"""What was fitted, applied: to the same samples, to other patients, to classes in another order."""

import numpy as np
import polars as pl
import pytest
from ehr_core.errors import ConfigError, DataError, FormatError, NotApplicable
from ehr_core.formats.folder import file_digests
from ehr_core.formats.predictions import read_predictions
from ehr_eval.applying import apply
from ehr_eval.fitted import open_fitted
from ehr_eval.labelling import label
from ehr_eval.predicting import fit, predict
from ehr_eval.settings import ApplyConfig, FitConfig, LabelConfig, LogisticConfig, PredictConfig
from ehr_eval.task_settings import InHospitalMortalityConfig

TASK = {"in_hospital_mortality": InHospitalMortalityConfig()}
LOGISTIC = {"logistic": LogisticConfig()}


@pytest.fixture
def labels(parts, tiny, tmp_path):
    label(LabelConfig(source=parts.source(path=tiny), task=TASK, output=tmp_path / "labels"))
    return tmp_path / "labels" / "in_hospital_mortality"


@pytest.fixture
def fitted(parts, tiny, labels, tmp_path):
    (found,) = fit(FitConfig(source=parts.source(path=tiny), labels=labels, predictors=LOGISTIC, output=tmp_path / "f"))
    return found.path


@pytest.fixture
def elsewhere(dataset, patients, tmp_path):
    """Other patients, of whom a site has held_out alone."""
    return dataset(tmp_path / "elsewhere", held_out=[patients(range(1000, 1040), 9)])


@pytest.fixture
def ask(parts, fitted, tmp_path):
    def call(meds, **more):
        output = more.pop("output", tmp_path / "applied")
        return apply(ApplyConfig(source=parts.source(path=meds), fitted=fitted, output=output, **more))

    return call


def test_fit_and_apply_are_predict(parts, tiny, labels, ask, tmp_path):
    predict(PredictConfig(source=parts.source(path=tiny), labels=labels, predictors=LOGISTIC, output=tmp_path / "p"))
    at_once = read_predictions(tmp_path / "p/predictions/in_hospital_mortality/logistic/predictions.parquet")
    apart = ask(tiny, labels=labels, splits=["tuning", "held_out"])
    assert at_once.table.equals(apart.table)
    assert apart.labelled


def test_new_patients_are_asked_at_their_last_event_and_nothing_fitted_changes(ask, fitted, elsewhere):
    before = file_digests(fitted)
    found = ask(elsewhere)
    assert file_digests(fitted) == before
    assert not found.labelled
    assert found.table["subject_id"].to_pylist() == list(range(1000, 1040))
    events = pl.read_parquet(elsewhere / "data/held_out/0.parquet")
    last = events.group_by("subject_id").agg(pl.col("time").max()).sort("subject_id")["time"].to_list()
    assert found.table["prediction_time"].to_pylist() == last
    assert 0 < found.prediction.min() < found.prediction.max() < 1


def test_a_patient_gets_the_same_whoever_else_is_asked(ask, elsewhere, tmp_path):
    everyone = ask(elsewhere)
    pl.from_arrow(everyone.table.select(["subject_id", "prediction_time"]))[3:5].write_csv(tmp_path / "two.csv")
    two = ask(elsewhere, labels=tmp_path / "two.csv", output=tmp_path / "two")
    np.testing.assert_allclose(two.prediction, everyone.prediction[3:5], rtol=1e-6)


def test_a_later_event_does_not_change_a_prediction(ask, dataset, elsewhere, tmp_path):
    events = pl.read_parquet(elsewhere / "data/held_out/0.parquet")
    times = events.group_by("subject_id").agg(prediction_time=pl.col("time").sort().get(6)).sort("subject_id")
    times.write_csv(tmp_path / "when.csv")
    whole = ask(elsewhere, labels=tmp_path / "when.csv")
    past = events.join(times, on="subject_id").filter(
        pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time"))
    )
    cut = dataset(tmp_path / "cut", held_out=[past.drop("prediction_time")])
    assert len(past) < len(events)
    again = ask(cut, labels=tmp_path / "when.csv", output=tmp_path / "again")
    np.testing.assert_array_equal(whole.prediction, again.prediction)


def test_records_of_another_vocabulary_are_refused(ask, dataset, elsewhere, tmp_path):
    events = pl.read_parquet(elsewhere / "data/held_out/0.parquet")
    other = dataset(tmp_path / "other", held_out=[events.with_columns(code="XX//" + pl.col("code"))])
    with pytest.raises(FormatError, match="codes of these records belong to another vocabulary"):
        ask(other)
    assert not (tmp_path / "applied").exists()


def test_labels_of_another_kind_are_refused_before_any_work(ask, elsewhere, tmp_path):
    table = pl.DataFrame({"subject_id": [1000], "float_value": [1.5]})
    table.with_columns(prediction_time=pl.datetime(2020, 6, 1)).write_parquet(tmp_path / "number.parquet")
    with pytest.raises(DataError, match=r"number\.parquet: labels lack the column boolean_value"):
        ask(elsewhere, labels=tmp_path / "number.parquet")
    assert not (tmp_path / "applied").exists()


def test_classes_keep_the_names_they_were_learned_by(parts, tiny, elsewhere, tmp_path):
    rng = np.random.default_rng(0)
    table = pl.DataFrame({"subject_id": range(1, 261)}).with_columns(prediction_time=pl.datetime(2020, 3, 1))
    table = table.with_columns(categorical_value=pl.Series(rng.choice(["home", "icu", "ward"], 260)))
    table.write_csv(tmp_path / "place.csv")
    given = {"source": parts.source(path=tiny), "predictors": LOGISTIC}
    (found,) = fit(FitConfig(**given, labels=tmp_path / "place.csv", output=tmp_path / "f2"))
    assert open_fitted(found.path).asked().names == ("home", "icu", "ward")
    site = pl.DataFrame({"subject_id": [1000, 1001, 1002], "categorical_value": ["ward", "home", "ward"]})
    site.with_columns(prediction_time=pl.datetime(2020, 3, 1)).write_csv(tmp_path / "site.csv")
    ask = ApplyConfig(source=parts.source(path=elsewhere), fitted=found.path, labels=tmp_path / "site.csv")
    ask.output = tmp_path / "there"
    assert apply(ask).label.tolist() == [2, 0, 2]  # "ward" is class 2 here, though it would be 1 of two
    site.with_columns(pl.lit("hospice").alias("categorical_value"), prediction_time=pl.datetime(2020, 3, 1)).write_csv(
        tmp_path / "site.csv"
    )
    ask.output = tmp_path / "strange"
    with pytest.raises(ConfigError, match="1 of them unknown to what was fitted, which knows home, icu, ward"):
        apply(ask)


def test_what_could_not_be_fitted_says_why_when_it_is_applied(parts, tiny, labels, elsewhere, tmp_path):
    given = {"source": parts.source(path=tiny), "labels": labels, "predictors": {"refusing": parts.refusing()}}
    (found,) = fit(FitConfig(**given, output=tmp_path / "r"))
    with pytest.raises(NotApplicable, match="could not be fitted: this cohort has no such code"):
        apply(ApplyConfig(source=parts.source(path=elsewhere), fitted=found.path, output=tmp_path / "never"))


def test_a_split_that_does_not_exist_is_refused(ask, elsewhere):
    with pytest.raises(ConfigError, match="splits has 'test'; allowed: train, tuning, held_out"):
        ask(elsewhere, splits=["test"])
