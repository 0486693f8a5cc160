"""The commands one after the other on a small dataset, and what they refuse."""

import json
import shutil

import polars as pl
import pytest
from ehr_core import config
from ehr_core.errors import ConfigError, DataError, FormatError, NotApplicable
from ehr_core.formats.folder import read_manifest
from ehr_core.formats.labels import read_labels
from ehr_core.testing.corruption import reseal
from ehr_eval.benchmarking import benchmark
from ehr_eval.evaluation import evaluate
from ehr_eval.features import FeatureSet
from ehr_eval.labelling import label, task_codes
from ehr_eval.predicting import predict
from ehr_eval.settings import BenchmarkConfig, EvaluateConfig, LabelConfig, LogisticConfig, PredictConfig
from ehr_eval.task_settings import InHospitalMortalityConfig, Readmission30dConfig
from sklearn.metrics import roc_auc_score

TASKS = {"in_hospital_mortality": InHospitalMortalityConfig(), "readmission_30d": Readmission30dConfig()}


@pytest.fixture
def labels(parts, tiny, tmp_path):
    label(LabelConfig(source=parts.source(path=str(tiny)), task=TASKS, output=str(tmp_path / "labels")))
    return tmp_path / "labels"


@pytest.fixture
def asking(parts, tiny, labels, tmp_path):
    """Settings of predict for the mortality labels."""

    def make(**more):
        given = {"labels": str(labels / "in_hospital_mortality"), "output": str(tmp_path / "out"), **more}
        return PredictConfig(source=parts.source(path=str(tiny)), **given)

    return make


def scores_of(folder):
    found = json.loads((folder / "scores.json").read_text())
    return found, {(r["task"], r["predictor"], r["metric"]): r for r in found["scores"]}


def test_labels_come_with_what_asked_for_them_and_how_many_there_are(labels):
    manifest = read_manifest(labels / "in_hospital_mortality", "labels", 2)
    table = pl.read_parquet(labels / "in_hospital_mortality" / "train.parquet")
    counts = manifest.content["splits"]["train"]
    assert manifest.content["task"]["prediction_offset_hours"] == 24
    assert counts["rows"] == len(table) > 100
    assert counts["positives"] == table["boolean_value"].sum() > 20
    assert str(labels) not in json.dumps(manifest.settings)
    assert table["subject_id"].is_sorted()
    assert task_codes(read_labels(labels / "readmission_30d")).horizon_days == 30


def test_a_pool_of_processes_gives_the_same_labels(parts, tiny, labels, tmp_path):
    from ehr_core.plugin import ProcessesConfig

    settings = LabelConfig(source=parts.source(path=str(tiny)), executor=ProcessesConfig(), task=TASKS)
    settings.output = str(tmp_path / "again")
    label(settings)
    for path in labels.rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(labels)).read_bytes()


def test_a_dataset_without_the_codes_says_which_were_looked_for(parts, tmp_path, events, dataset):
    rows = events([(1, 0, "LAB"), (1, 3, "HOSPITAL_ADMISSION"), (1, 40, "HOSPITAL_DISCHARGE"), (1, 99, "LAB")])
    source = parts.source(path=str(dataset(tmp_path / "meds", train=[rows])))
    label(LabelConfig(source=source, task=TASKS, output=str(tmp_path / "labels")))
    reason = json.loads((tmp_path / "labels/in_hospital_mortality/not_applicable.json").read_text())["reason"]
    assert "MEDS_DEATH" in reason
    assert "HOSPITAL_ADMISSION" not in reason
    assert (tmp_path / "labels/readmission_30d/train.parquet").is_file()
    empty = parts.source(path=str(dataset(tmp_path / "none", train=[events([(1, 0, "LAB")])])))
    with pytest.raises(NotApplicable, match="HOSPITAL_ADMISSION"):
        label(LabelConfig(source=empty, task=TASKS, output=str(tmp_path / "nothing")))
    assert not (tmp_path / "nothing").exists()


def test_the_true_probabilities_of_a_cohort_are_joined_or_refused(parts, tiny, labels, tmp_path):
    for split in ("train", "tuning", "held_out"):
        table = pl.read_parquet(labels / "in_hospital_mortality" / f"{split}.parquet")
        path = tiny / "labels" / "in_hospital_mortality" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.with_columns(true_probability=pl.int_range(pl.len()) / 1000).reverse().write_parquet(path)
    source, task = parts.source(path=str(tiny)), {"in_hospital_mortality": InHospitalMortalityConfig()}
    label(LabelConfig(source=source, task=task, output=str(tmp_path / "true")))
    found = pl.read_parquet(tmp_path / "true/in_hospital_mortality/train.parquet")
    assert (found["true_probability"] * 1000).round().to_list() == list(range(len(found)))
    table.with_columns(~pl.col("boolean_value"), true_probability=pl.lit(0.5)).write_parquet(path)
    with pytest.raises(DataError, match="does not agree with the task"):
        label(LabelConfig(source=source, task=task, output=str(tmp_path / "false")))
    other = {"in_hospital_mortality": InHospitalMortalityConfig(prediction_offset_hours=12)}
    label(LabelConfig(source=source, task=other, output=str(tmp_path / "other")))
    assert "true_probability" not in pl.read_parquet(tmp_path / "other/in_hospital_mortality/train.parquet").columns


def test_predictions_are_the_labelled_rows_and_know_their_inputs(asking, labels, tmp_path):
    predict(asking())
    table = pl.read_parquet(tmp_path / "out/predictions/in_hospital_mortality/logistic/predictions.parquet")
    for split in ("tuning", "held_out"):
        rows = pl.read_parquet(labels / "in_hospital_mortality" / f"{split}.parquet")
        assert table.filter(split=split).select(rows.columns).equals(rows)
    assert set(table["split"]) == {"tuning", "held_out"}
    held_out = table.filter(split="held_out")
    assert roc_auc_score(held_out["boolean_value"], held_out["predicted_boolean_probability"]) > 0.7
    manifest = read_manifest(tmp_path / "out/predictions/in_hospital_mortality/logistic", "predictions", 1)
    assert manifest.content["task"] == "in_hospital_mortality"
    assert set(manifest.inputs) == {"labels", "source", "fitted"}
    names = FeatureSet.load(tmp_path / "out/fitted/in_hospital_mortality/logistic").names
    assert {"age", "LAB//A|mean"} <= set(names)
    assert not any("DEATH" in name for name in names)


def test_the_same_settings_give_the_same_bytes(asking, tmp_path):
    for name in ("one", "two"):
        predict(asking(output=str(tmp_path / name)))
    one, two = (
        tmp_path / name / "predictions/in_hospital_mortality/logistic/predictions.parquet" for name in ("one", "two")
    )
    assert one.read_bytes() == two.read_bytes()


def test_train_is_predicted_when_asked(asking, tmp_path):
    predict(asking(splits=["train", "held_out"]))
    table = pl.read_parquet(tmp_path / "out/predictions/in_hospital_mortality/logistic/predictions.parquet")
    assert set(table["split"]) == {"train", "held_out"}


def test_a_predictor_that_cannot_answer_leaves_its_reason_and_the_others_go_on(asking, parts, tmp_path):
    predict(asking(predictors={"refusing": parts.refusing(), "steady": parts.steady(answer=0.25)}))
    reason = json.loads((tmp_path / "out/predictions/in_hospital_mortality/refusing/not_applicable.json").read_text())
    assert reason["reason"] == "this cohort has no such code"
    table = pl.read_parquet(tmp_path / "out/predictions/in_hospital_mortality/steady/predictions.parquet")
    assert set(table["predicted_boolean_probability"]) == {0.25}


def test_a_predictor_that_needs_a_run_says_so_before_any_work(asking, parts, tmp_path):
    with pytest.raises(ConfigError, match="'hungry' needs a trained run: give run=DIR"):
        predict(asking(predictors={"logistic": LogisticConfig(), "hungry": parts.hungry()}))
    assert not (tmp_path / "out" / "predictions").exists()


def test_what_a_killed_predictor_left_is_there_when_the_same_is_asked_again(asking, parts, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        predict(asking(predictors={"steady": parts.steady(dies=True)}))
    fitted = tmp_path / "out" / "fitted" / "in_hospital_mortality"
    (left,) = fitted.iterdir()
    assert (left / "begun").is_file()
    again = asking(predictors={"steady": parts.steady(dies=True)})
    with pytest.raises(RuntimeError, match="killed"):
        predict(again)
    assert list(fitted.iterdir()) == [left]
    with pytest.raises(AssertionError):
        predict(asking(predictors={"steady": parts.steady(resumes=True)}))
    (other,) = set(fitted.iterdir()) - {left}
    (other / "earlier").touch()
    predict(asking(predictors={"steady": parts.steady(resumes=True)}))
    assert {path.name for path in fitted.iterdir()} == {left.name, "steady"}


def test_a_dataset_is_tokenized_with_the_runs_tokenizer_when_no_store_is_given(
    asking, parts, run, token_store, tmp_path
):
    predict(asking(predictors={"hungry": parts.hungry()}, run=str(run)))
    assert (tmp_path / "out/fitted/in_hospital_mortality/hungry/store.txt").read_text() == "meds tokenizer"
    manifest = read_manifest(tmp_path / "out/predictions/in_hospital_mortality/hungry", "predictions", 1)
    assert set(manifest.inputs) == {"labels", "source", "fitted", "run"}
    given = tmp_path / "given"
    token_store(given, "given")
    output = str(tmp_path / "other")
    predict(asking(predictors={"hungry": parts.hungry()}, run=str(run), store=str(given), output=output))
    assert (tmp_path / "other/fitted/in_hospital_mortality/hungry/store.txt").read_text() == "given"


def test_records_most_of_which_a_run_does_not_know_are_refused_unless_the_limit_is_raised(
    asking, parts, run, token_store, tmp_path
):
    token_store(tmp_path / "strange", "strange", unknown=99)
    given = {"predictors": {"hungry": parts.hungry()}, "run": run, "store": tmp_path / "strange"}
    with pytest.raises(FormatError, match=r"99% of the events .* With max_unknown above 0.5 it is applied"):
        predict(asking(**given))
    assert not (tmp_path / "out/fitted").exists()
    assert predict(asking(**given, max_unknown=1.0)).predictions


def test_a_predictor_that_loses_rows_is_refused(asking, parts, tmp_path):
    with pytest.raises(FormatError, match="a predictor must answer each of them once"):
        predict(asking(predictors={"steady": parts.steady(lose_rows=True)}))
    assert not (tmp_path / "out/predictions/in_hospital_mortality/steady").exists()


def test_an_output_that_exists_is_not_written_over(asking, tmp_path):
    predict(asking())
    with pytest.raises(FormatError, match="exists already"):
        predict(asking())


def test_labels_of_one_class_teach_nothing(asking, labels, tmp_path):
    folder = tmp_path / "one_class"
    shutil.copytree(labels / "in_hospital_mortality", folder)
    (folder / "manifest.json").unlink()
    table = pl.read_parquet(folder / "train.parquet")
    table.with_columns(boolean_value=pl.lit(False)).write_parquet(folder / "train.parquet")
    with pytest.raises(DataError, match="have one class only; nothing can be learned from them"):
        predict(asking(labels=str(folder)))
    assert not (tmp_path / "out" / "fitted").exists()


def test_scores_equal_scikit_learn_and_differences_are_paired(asking, parts, tmp_path):
    other = LogisticConfig(strengths=[1e-6])
    predict(asking(predictors={"logistic": LogisticConfig(), "weak": other, "steady": parts.steady()}))
    evaluate(EvaluateConfig(predictions=str(tmp_path / "out" / "predictions"), num_bootstrap=200, output=str(tmp_path)))
    found, scores = scores_of(tmp_path)
    table = pl.read_parquet(tmp_path / "out/predictions/in_hospital_mortality/logistic/predictions.parquet").filter(
        split="held_out"
    )
    row = scores["in_hospital_mortality", "logistic", "auroc"]
    expected = roc_auc_score(table["boolean_value"], table["predicted_boolean_probability"])
    assert row["value"] == pytest.approx(expected, abs=1e-12)
    assert row["low"] < row["value"] < row["high"]
    assert (row["rows"], row["positives"]) == (len(table), table["boolean_value"].sum())
    assert row["subjects"] == table["subject_id"].n_unique() < len(table)
    differences = {(r["first"], r["second"], r["metric"]): r for r in found["differences"]}
    pair = differences["logistic", "steady", "auroc"]
    assert pair["value"] == pytest.approx(row["value"] - 0.5)
    assert (pair["low"], pair["high"]) == pytest.approx((row["low"] - 0.5, row["high"] - 0.5))
    assert [m["name"] for m in found["metrics"]] == ["auroc", "auprc", "brier", "log_loss", "f1"]
    first = (tmp_path / "scores.json").read_bytes()
    evaluate(EvaluateConfig(predictions=str(tmp_path / "out" / "predictions"), num_bootstrap=200, output=str(tmp_path)))
    assert (tmp_path / "scores.json").read_bytes() == first


def test_the_ceiling_is_the_score_of_the_truth(asking, labels, parts, tmp_path):
    for split in ("train", "tuning", "held_out"):
        path = labels / "in_hospital_mortality" / f"{split}.parquet"
        table = pl.read_parquet(path)
        truth = 0.2 + 0.5 * pl.col("boolean_value") - 0.1 * (pl.int_range(pl.len()) % 7)
        table.with_columns(true_probability=truth.clip(0, 1)).write_parquet(path)
    reseal(path.parent)
    predict(asking(predictors={"logistic": LogisticConfig(), "steady": parts.steady()}))
    evaluate(EvaluateConfig(predictions=str(tmp_path / "out" / "predictions"), num_bootstrap=50, output=str(tmp_path)))
    found, scores = scores_of(tmp_path)
    top = scores["in_hospital_mortality", "ceiling", "auroc"]["value"]
    own = scores["in_hospital_mortality", "logistic", "auroc"]["value"]
    shares = {row["predictor"]: row["value"] for row in found["ceilings"]}
    assert shares == pytest.approx({"logistic": (own - 0.5) / (top - 0.5), "steady": 0.0})
    assert "ceiling" not in {r["first"] for r in found["differences"]}


def test_predictors_with_different_rows_are_not_compared(asking, parts, tmp_path):
    predict(asking(predictors={"steady": parts.steady(), "logistic": LogisticConfig()}))
    path = tmp_path / "out/predictions/in_hospital_mortality/steady/predictions.parquet"
    pl.read_parquet(path).filter(pl.int_range(pl.len()) % 2 == 0).write_parquet(path)
    reseal(path.parent)
    with pytest.raises(DataError, match="predictors can only be compared on the same rows"):
        evaluate(EvaluateConfig(predictions=str(tmp_path / "out" / "predictions"), output=str(tmp_path)))


def test_benchmark_does_all_of_it_for_several_tasks(parts, tiny, labels, tmp_path):
    chosen = {"logistic": LogisticConfig(), "refusing": parts.refusing()}
    settings = BenchmarkConfig(source=parts.source(path=str(tiny)), labels=str(labels), predictors=chosen)
    settings.output, settings.num_bootstrap = str(tmp_path / "out"), 50
    benchmark(settings)
    _, scores = scores_of(tmp_path / "out")
    assert {task for task, *_ in scores} == set(TASKS)
    page = (tmp_path / "out/report.html").read_text()
    for row in scores.values():
        assert f"{row['value']:.3f}" in page
    assert "this cohort has no such code" in page
    assert (tmp_path / "out/predictions/readmission_30d/logistic/predictions.parquet").is_file()


def test_the_report_says_what_was_odd_in_the_records(parts, tiny, labels, tmp_path, events):
    path = tiny / "data" / "held_out" / "0.parquet"
    subject = pl.read_parquet(path)["subject_id"].max()
    pl.concat([pl.read_parquet(path), events([(subject, 400_000, "LATER"), (subject, 1, "EARLIER")])]).write_parquet(
        path
    )
    settings = BenchmarkConfig(source=parts.source(path=str(tiny)), labels=str(labels / "readmission_30d"))
    settings.output, settings.num_bootstrap = str(tmp_path / "out"), 5
    benchmark(settings)
    manifest = read_manifest(tmp_path / "out/predictions/readmission_30d/logistic", "predictions", 1)
    assert manifest.content["treated"] == {"future": 1, "shards_sorted": 1}
    page = (tmp_path / "out/report.html").read_text()
    assert "records that were predicted: 1 events later than `source.latest`" in page
    assert "records that were predicted: 1 shards whose rows were not in order" in page


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused_before_any_work(parts, tiny, labels, tmp_path, seed):
    settings = BenchmarkConfig(source=parts.source(path=str(tiny)), labels=str(labels), seed=seed)
    settings.output = str(tmp_path / "out")
    with pytest.raises(ConfigError, match=f"seed is {seed}; it must be a number from 0 to 4294967295"):
        benchmark(settings)
    assert not (tmp_path / "out").exists()


def test_command_lines_compose_as_documented(parts):
    composed = config.compose(
        "predict", ["source.path=X", "labels=L", "predictors=[logistic,steady]", "task=readmission_30d", "seed=7"]
    )
    settings = config.to_settings(composed)
    assert list(settings.predictors) == ["logistic", "steady"]
    assert settings.task["readmission_30d"].horizon_days == 30
    assert settings.seed == 7
    settings = config.to_settings(config.compose("evaluate", ["predictions=P", "metric=[auroc]"]))
    assert list(settings.metric) == ["auroc"]
    assert config.to_settings(config.compose("evaluate", ["predictions=P"])).metric == {}


def test_a_source_is_required(labels):
    with pytest.raises(ConfigError, match="source is required"):
        predict(PredictConfig(labels=str(labels / "in_hospital_mortality")))
