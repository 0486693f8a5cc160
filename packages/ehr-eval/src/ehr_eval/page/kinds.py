"""What the report draws for each kind of outcome. Sums, rates and curves only: no row of any subject.

Each function gets the samples of one task by predictor (``ceiling`` among them where the truth is known), and the
colour of each predictor.
"""

from collections.abc import Callable, Mapping
from html import escape

import numpy as np
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL, Sample

from ehr_eval.metrics.ranking import auroc
from ehr_eval.page import curves
from ehr_eval.page.figures import Series, figure
from ehr_eval.page.html import details, number, row, table

Samples = Mapping[str, Sample]
Colours = Mapping[str, int]
UNIT = (0.0, 1.0)
MOST_CLASSES = 15
"""A confusion matrix of more classes cannot be read."""
GROUPS = ("low", "middle", "high")


def figures_of(samples: Samples, colours: Colours) -> str:
    """Figures and tables of one task, or why there are none."""
    first = next(iter(samples.values()))
    if not len(first):
        return "<p>This split has no labels, so there are no curves.</p>"
    return KINDS[first.question.kind](samples, colours)


# -- binary


def binary(samples: Samples, colours: Colours) -> str:
    """ROC, precision and recall, calibration."""
    first = next(iter(samples.values()))
    if not 0 < first.label.sum() < len(first):
        return "<p>The labels of this split have one class only, so there are no curves.</p>"
    roc = [Series(n, *curves.roc(s.label, s.prediction), colours[n]) for n, s in samples.items()]
    recall = [Series(n, *curves.precision_recall(s.label, s.prediction), colours[n]) for n, s in samples.items()]
    flat = {name: (sample.label, sample.prediction) for name, sample in samples.items()}
    return row(
        [
            figure("ROC", roc, "false positive rate", "true positive rate", UNIT, UNIT, diagonal=True),
            figure("Precision and recall", recall, "recall", "precision", UNIT, UNIT),
            _calibration("Calibration: ten bins of equal count", flat, colours),
        ]
    ) + _bins(flat)


def _calibration(title: str, flat: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: Colours) -> str:
    lines, top = [], 0.0
    for name, (label_M, probability_M) in flat.items():
        bins = curves.reliability(label_M, probability_M)
        hints = [f"{count:,} samples" for count in bins.count_B]
        lines.append(Series(name, bins.predicted_B, bins.observed_B, colours[name], True, hints))
        top = max(top, bins.predicted_B.max(), bins.observed_B.max())
    ends = (0.0, min(1.0, float(np.ceil(top * 10 + 0.5) / 10)))
    return figure(title, lines, "predicted probability", "observed share", ends, ends, diagonal=True)


def _bins(flat: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    rows = []
    for name, (label_M, probability_M) in flat.items():
        bins = curves.reliability(label_M, probability_M)
        parts = zip(bins.predicted_B, bins.observed_B, bins.count_B, strict=True)
        for place, (predicted, observed, count) in enumerate(parts, start=1):
            cells = (str(place), f"{count:,}", f"{predicted:.3f}", f"{observed:.3f}")
            rows.append([escape(name), *map(number, cells)])
    heads = ["Predictor", "Bin", "Samples", "Mean predicted", "Observed"]
    return details("Calibration as a table", table("Calibration", heads, rows))


# -- classes and labels


def multiclass(samples: Samples, colours: Colours) -> str:
    """Calibration of every class against the others, and what was taken for what."""
    first = next(iter(samples.values()))
    one_NK = np.eye(first.question.num_outputs)[first.label.astype(np.int64)]
    flat = {name: (one_NK.ravel(), sample.prediction.ravel()) for name, sample in samples.items()}
    parts = [row([_calibration("Calibration: every class against the others", flat, colours)]), _bins(flat)]
    if first.question.num_outputs <= MOST_CLASSES:
        parts += [details(f"Confusion: {name}", _confusion(name, sample)) for name, sample in samples.items()]
    return "".join(parts)


def _confusion(name: str, sample: Sample) -> str:
    names = sample.question.names
    count_KK = curves.confusion(sample.label, sample.prediction)
    rows = []
    for true, counts in enumerate(count_KK):
        total = counts.sum()
        cells = [f"{count:,} ({count / total:.0%})" if total else "0" for count in counts]
        rows.append([escape(names[true]), *map(number, cells), number(f"{total:,}")])
    caption = f"{name}: true class (rows) and likeliest class (columns), with shares of the row"
    return table(caption, ["True class", *names, "All"], rows)


def multilabel(samples: Samples, colours: Colours) -> str:
    """Calibration of all labels together, and each label by itself."""
    flat = {}
    for name, sample in samples.items():
        known_NK = ~np.isnan(sample.label)
        flat[name] = sample.label[known_NK], sample.prediction[known_NK]
    first = next(iter(samples.values()))
    rows = []
    for k, label in enumerate(first.question.names):
        known_N = ~np.isnan(first.label[:, k])
        one_RN = np.ones((1, int(known_N.sum())))
        scores = [float(auroc(s.label[known_N, k], s.prediction[known_N, k], one_RN)[0]) for s in samples.values()]
        counts = (f"{known_N.sum():,}", f"{int(first.label[known_N, k].sum()):,}")
        cells = ["&ndash;" if np.isnan(score) else f"{score:.3f}" for score in scores]
        rows.append([escape(label), *map(number, (*counts, *cells))])
    heads = ["Label", "Known", "Positive", *(f"AUROC {name}" for name in samples)]
    every = table("Each label by itself", heads, rows)
    return every + row([_calibration("Calibration: all labels together", flat, colours)]) + _bins(flat)


# -- numbers and times


def regression(samples: Samples, colours: Colours) -> str:
    """Predicted against observed, and how errors are spread."""
    lines, errors = [], []
    for name, sample in samples.items():
        bins = curves.reliability(sample.label, sample.prediction)
        hints = [f"{count:,} samples" for count in bins.count_B]
        lines.append(Series(name, bins.predicted_B, bins.observed_B, colours[name], True, hints))
        errors.append(Series(name, *curves.histogram(sample.prediction - sample.label), colours[name]))
    values = np.concatenate([np.concatenate([line.x, line.y]) for line in lines])
    margin = 0.05 * (np.ptp(values) or abs(values[0]) or 1.0)
    ends = (float(values.min() - margin), float(values.max() + margin))
    title = "Predicted and observed: ten bins of equal count"
    return row(
        [
            figure(title, lines, "mean predicted", "mean observed", ends, ends, diagonal=True),
            figure("Errors", errors, "predicted minus observed", "share of samples"),
        ]
    )


def survival(samples: Samples, colours: Colours) -> str:
    """Kaplan-Meier estimates of the thirds of each predictor's risks."""
    figures = []
    for name, sample in samples.items():
        lines = []
        for place, group_N in enumerate(curves.thirds(sample.prediction)):
            if group_N.any():
                x, y = curves.kaplan_meier(sample.label[group_N, 0], sample.label[group_N, 1])
                lines.append(Series(f"{GROUPS[place]} risk ({int(group_N.sum()):,})", x, y, place))
        figures.append(figure(f"Survival by risk: {name}", lines, "days", "share without event", None, UNIT))
    return row(figures)


KINDS: dict[str, Callable[[Samples, Colours], str]] = {
    BINARY: binary,
    MULTICLASS: multiclass,
    MULTILABEL: multilabel,
    REGRESSION: regression,
    SURVIVAL: survival,
}
