"""Files that were damaged on the way: predictions, scores and fitted folders are the same, or refused in a line."""

import json

import numpy as np
import pytest
from ehr_core import plugins
from ehr_core.errors import FormatError
from ehr_core.testing.corruption import check_reader
from ehr_eval.evaluation import evaluate, read_scores
from ehr_eval.features import FeatureSet
from ehr_eval.fitted import ESTIMATOR, open_fitted
from ehr_eval.found import find
from ehr_eval.labelling import label
from ehr_eval.predicting import predict
from ehr_eval.settings import EvaluateConfig, LabelConfig, LogisticConfig, PredictConfig
from ehr_eval.task_settings import InHospitalMortalityConfig


@pytest.fixture
def made(parts, tiny, tmp_path):
    """A folder with all that `predict` leaves, and the scores of it."""
    source, output = parts.source(path=str(tiny)), tmp_path / "out"
    label(LabelConfig(source=source, task={"death": InHospitalMortalityConfig()}, output=str(tmp_path / "labels")))
    chosen = {"logistic": LogisticConfig(), "refusing": parts.refusing()}
    predict(PredictConfig(source=source, labels=str(tmp_path / "labels/death"), predictors=chosen, output=str(output)))
    evaluate(EvaluateConfig(predictions=str(output / "predictions"), num_bootstrap=20, output=str(output / "scores")))
    return output


def test_predictions_and_reasons(made, tmp_path):
    def read(path):
        found = find(path)
        answers = [(one.question, one.predictions.table) for one in found if one.reason is None]
        return [(one.predictor, one.reason) for one in found], answers

    check_reader(read, made / "predictions" / "death", tmp_path / "s", times=4, skip=["deleted"])


def test_predictions_that_were_lost_are_missed(made):
    place = made / "predictions" / "death" / "logistic"
    (place / "predictions.parquet").unlink()
    (found,) = (one for one in find(made / "predictions") if one.predictor == "logistic")
    with pytest.raises(FormatError, match=r"predictions\.parquet is missing; manifest\.json lists it"):
        _ = found.predictions


def test_a_fitted_baseline(made, tmp_path):
    def read(path):
        opened = open_fitted(path)
        estimator = plugins.build("baseline", opened.part)
        estimator.load(path / ESTIMATOR, opened.asked())
        columns = FeatureSet.load(path)
        value_NF = np.linspace(-1, 1, 3 * len(columns.names)).reshape(3, -1).astype(np.float32)
        return opened.task, opened.predictor, opened.question, columns, estimator.predict(value_NF)

    check_reader(read, made / "fitted" / "death" / "logistic", tmp_path / "s", times=1)


def test_scores(made, tmp_path):
    check_reader(lambda path: read_scores(path).content, made / "scores", tmp_path / "s", times=20)


def test_scores_of_before_there_were_seals(made, tmp_path):
    check_reader(lambda path: read_scores(path).content, made / "scores", tmp_path / "s", times=20, vouched=True)


def test_a_number_that_was_changed_in_the_scores_is_noticed(made):
    path = made / "scores" / "scores.json"
    content = json.loads(path.read_text())
    content["scores"][0]["value"] = 0.99
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"scores\.json was changed after it was written"):
        read_scores(path)
