"""The report: one file, no request, no patient, every number."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from ehr_core.formats.folder import Manifest, write_json, write_manifest
from ehr_core.formats.predictions import prediction_table, write_predictions
from ehr_core.outcomes import BINARY, Question
from ehr_eval.evaluation import evaluate
from ehr_eval.page import curves
from ehr_eval.page.figures import Series, figure, ticks
from ehr_eval.page.report import report
from ehr_eval.settings import EvaluateConfig, ReportConfig
from sklearn.metrics import precision_recall_curve, roc_curve


class Tags(HTMLParser):
    """Checks that tags are closed in order, and collects attributes that could load something."""

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attributes):
        self.loads += [(tag, name) for name, _ in attributes if name in ("src", "href", "xlink:href", "data", "action")]
        if tag not in ("meta", "line", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def predictions(tmp_path, parts, at):
    rng = np.random.default_rng(0)
    subject = np.arange(918_273_000, 918_273_200)
    label = rng.random(200) < 0.3
    labels = pl.DataFrame(
        {
            "subject_id": subject,
            "prediction_time": [at(1)] * 200,
            "boolean_value": label,
            "true_probability": 0.2 + 0.4 * label,
        }
    ).to_arrow()
    for name in ("first", "<second>"):
        probability = np.clip(rng.normal(0.3 + 0.2 * label, 0.15), 0, 1)
        folder = tmp_path / "predictions" / "question" / name
        write_predictions(
            folder / "predictions.parquet", [prediction_table(labels, "held_out", probability, Question(BINARY))]
        )
    counts = {"train": {"rows": 4321, "subjects": 4000, "positives": 432, "prevalence": 0.1}}
    content = {"task": "question", "splits": counts, "task_settings": {"name": "question", "days": 30}}
    write_manifest(folder, Manifest("predictions", 1, ["pkg==9.9"], {"seed": 5}, {"labels": "ab" * 32}, content))
    write_json(tmp_path / "predictions" / "question" / "note.json", {})
    refused = tmp_path / "predictions" / "question" / "third"
    refused.mkdir()
    write_json(refused / "not_applicable.json", {"reason": "no such code & so on"})
    return tmp_path / "predictions"


@pytest.fixture
def page(tmp_path, predictions, run):
    evaluate(EvaluateConfig(predictions=str(predictions), num_bootstrap=100, output=str(tmp_path)))
    settings = ReportConfig(scores=str(tmp_path), predictions=str(predictions), runs=[str(run)])
    settings.title, settings.notes, settings.output = "A & B", ["trajectories were not sampled"], str(tmp_path / "out")
    return report(settings).read_text()


def test_it_loads_nothing_and_is_well_formed(page, tmp_path):
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    assert "http" not in page
    assert "url(" not in page
    assert "<script" not in page
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.loads == []


def test_it_holds_the_numbers_the_facts_and_the_reasons(page, tmp_path):
    import json

    scores = json.loads((tmp_path / "scores.json").read_text())
    for row in scores["scores"]:
        assert f"{row['value']:.3f}" in page
        assert f"[{row['low']:.3f}, {row['high']:.3f}]" in page
    assert f"{scores['differences'][0]['value']:+.3f}" in page
    for text in ("4,321", "10.0%", "pkg==9.9", "abababababab", "ehr-train==0.1.0", "trajectories were not sampled"):
        assert text in page
    for text in ("A &amp; B", "&lt;second&gt;", "no such code &amp; so on", "ceiling (the truth itself)"):
        assert text in page
    assert "<second>" not in page


def test_it_holds_no_subject_and_no_path(page, tmp_path):
    assert "918273" not in page.replace(",", "")
    assert str(tmp_path) not in page


def test_it_draws_the_curves_of_the_run_and_of_the_predictors(page):
    figures = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert figures[:3] == ["ROC", "Precision and recall", "Calibration: ten bins of equal count"]
    assert figures[3:] == ["loss", "speed"]
    assert "Training: tiny, next_token" in page
    for svg in re.findall(r"<svg viewBox=.*?</svg>", page):
        assert len(ElementTree.fromstring(svg)) > 0
        assert "nan" not in svg


def test_the_page_follows_light_and_dark(page):
    assert "color-scheme: light dark" in page
    assert "prefers-color-scheme: dark" in page


def test_one_class_gives_a_report_without_curves(tmp_path, parts, at):
    labels = {"subject_id": [1, 2], "prediction_time": [at(1)] * 2, "boolean_value": [False, False]}
    path = tmp_path / "predictions" / "only" / "predictions.parquet"
    write_predictions(
        path, [prediction_table(pl.DataFrame(labels).to_arrow(), "held_out", [0.1, 0.2], Question(BINARY))]
    )
    evaluate(EvaluateConfig(predictions=str(tmp_path / "predictions"), num_bootstrap=10, output=str(tmp_path)))
    page = report(ReportConfig(scores=str(tmp_path), predictions=str(tmp_path / "predictions"), output=str(tmp_path)))
    assert "one class only" in page.read_text()


def test_curves_are_scikit_learns():
    rng = np.random.default_rng(0)
    label, probability = rng.random(150) < 0.4, np.round(rng.random(150), 2)
    x, y = curves.roc(label, probability)
    theirs_x, theirs_y, _ = roc_curve(label, probability, drop_intermediate=False)
    np.testing.assert_allclose((x, y), (theirs_x, theirs_y))
    recall, precision = curves.precision_recall(label, probability)
    theirs_precision, theirs_recall, _ = precision_recall_curve(label, probability)
    np.testing.assert_allclose(recall, theirs_recall[:-1][::-1])
    np.testing.assert_allclose(precision, theirs_precision[:-1][::-1])
    assert len(curves.roc(rng.random(5000) < 0.5, rng.random(5000))[0]) <= curves.POINTS


def test_reliability_by_hand():
    label = np.array([False, False, True, True])
    bins = curves.reliability(label, np.array([0.1, 0.3, 0.6, 0.8]), num_bins=2)
    np.testing.assert_allclose(bins.predicted_B, [0.2, 0.7])
    np.testing.assert_allclose(bins.observed_B, [0.0, 1.0])
    assert bins.error == pytest.approx((0.2 + 0.3) / 2)
    constant = curves.reliability(label, np.full(4, 0.5))
    assert (constant.count_B, constant.error) == ([4], 0.0)


def test_ticks_are_round_numbers_inside_the_range():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-3.0, 1234.0) == pytest.approx([0, 250, 500, 750, 1000])


def test_a_gap_breaks_a_line():
    svg = figure("t", [Series("a", [0, 1, 2, 3, 4], [0, 1, float("nan"), 1, 0], 0)], "x", "y")
    assert svg.split("<ul")[0].count("<polyline") == 2
