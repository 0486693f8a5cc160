"""From labels and a dataset to fitted predictors, and from those to predictions: everything is checked before any work.

OUTPUT/labels/<task>/                  the labels as they were read, in the one form
OUTPUT/fitted/<task>/<predictor>/      what was fitted (`ehr_eval.fitted`)
OUTPUT/predictions/<task>/<predictor>/predictions.parquet
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core.errors import ConfigError
from ehr_core.formats.folder import check_free
from ehr_core.formats.labels import Labels
from ehr_core.formats.predictions import FILE, Predictions, read_predictions
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore
from ehr_core.protocols import OutcomeCodes
from ehr_core.stages import NOT_APPLICABLE, read_reason

from ehr_eval.applying import apply_fitted, check_splits, token_store
from ehr_eval.datasets import Dataset, output_folder, provided
from ehr_eval.features import Histories
from ehr_eval.fitted import Fitted, open_fitted
from ehr_eval.fitting import fit_predictor
from ehr_eval.label_notes import say_notes
from ehr_eval.labelling import reasons_in, task_codes
from ehr_eval.parts import choose_predictors, kind_of, needs_run
from ehr_eval.settings import FitConfig, PredictConfig
from ehr_eval.user_labels import label_folders, read_user_labels, write_user_labels


@dataclass(frozen=True)
class Predicted:
    """What `predict` did, by (task, predictor)."""

    path: Path
    """The folder with labels, fitted and predictions."""
    predictions: dict[tuple[str, str], Predictions] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    """Why some could not answer."""


@dataclass(frozen=True)
class Prepared:
    """Everything that fitting needs, checked."""

    dataset: Dataset
    store: Path | None
    labels: dict[str, Labels]
    folders: dict[str, Path]
    """Labels of each task in the one form."""
    chosen: dict[str, dict[str, Any]]
    """Task to its predictors by name."""
    codes: dict[str, OutcomeCodes | None]
    output: Path

    def jobs(self) -> Iterator[tuple[str, str, Any]]:
        """Task, name and settings of every predictor."""
        yield from ((task, name, part) for task, parts in self.chosen.items() for name, part in parts.items())

    def fitted(self, task: str, name: str) -> Path:
        """Where a fitted predictor is."""
        return self.output / "fitted" / task / name

    def predictions(self, task: str, name: str) -> Path:
        """Where predictions are."""
        return self.output / "predictions" / task / name


def fit(settings: FitConfig) -> list[Fitted]:
    """Write OUTPUT/labels/<task>/ and OUTPUT/fitted/<task>/<predictor>/ for every predictor, and open them.

    One that cannot be fitted leaves ``not_applicable.json`` with the reason, and the others go on. Raises ConfigError,
    FormatError or DataError before any work.
    """
    with prepared(settings) as ready:
        for task, name, _ in ready.jobs():
            check_free(ready.fitted(task, name))
        histories = _histories(ready)
        for task, name, part in ready.jobs():
            _fit(settings, ready, task, name, part, histories[task])
        return [open_fitted(ready.fitted(task, name)) for task, name, _ in ready.jobs()]


def predict(
    settings: PredictConfig,
    check: Callable[[Mapping[str, str]], object] | None = None,
    scored: str | None = None,
) -> Predicted:
    """As `fit`, and OUTPUT/predictions/<task>/<predictor>/ for the splits of ``settings``.

    ``check`` gets the kind of outcome of each task before any work, and may raise; labels without a sample of the
    split that is to be ``scored`` are refused as well.
    """
    check_splits(settings.splits)
    with prepared(settings, check, [scored] if scored else settings.splits) as ready:
        for task, name, _ in ready.jobs():
            check_free(ready.fitted(task, name))
            check_free(ready.predictions(task, name))
        histories = _histories(ready)
        result = Predicted(ready.output)
        for task, name, part in ready.jobs():
            _fit(settings, ready, task, name, part, histories[task])
            output = apply_fitted(
                ready.fitted(task, name),
                ready.folders[task],
                ready.predictions(task, name),
                meds=ready.dataset.path,
                store=ready.store,
                run=_path(settings.run),
                splits=settings.splits,
                seed=settings.seed,
                histories=histories[task],
            )
            if (output / NOT_APPLICABLE).is_file():
                result.reasons[task, name] = read_reason(output) or ""
            else:
                result.predictions[task, name] = read_predictions(output / FILE)
        return result


@contextlib.contextmanager
def prepared(
    settings: FitConfig,
    check: Callable[[Mapping[str, str]], object] | None = None,
    splits: Sequence[str] = (),
) -> Iterator[Prepared]:
    """Check everything, provide the dataset, write the labels in the one form, and tokenize where that is needed."""
    parts = settings.predictors
    for name, part in parts.items():
        if needs_run(part) and not settings.run:
            raise ConfigError(f"predictor {name!r} needs a trained run: give run=DIR, or leave it out of predictors")
    run = Run(settings.run) if settings.run else None
    label_folders(Path(settings.labels))
    output = output_folder(settings.output)
    learns = not parts or any(kind_of(part) == "baseline" for part in parts.values())
    with provided(settings.source) as dataset:
        labels = read_user_labels(Path(settings.labels), dataset.path, settings.kind, fit=learns, splits=splits)
        for found in labels.values():
            say_notes(found)
        outcomes = {name: found.asked().kind for name, found in labels.items()}
        if check is not None:
            check(outcomes)
        chosen = choose_predictors(parts, outcomes)
        codes = {name: task_codes(found, settings.task) for name, found in labels.items()}
        folders = write_user_labels(labels, output / "labels", dataset.digest)
        wanted = run is not None and any(needs_run(part) for found in chosen.values() for part in found.values())
        with token_store(settings.source, run.tokenizer if run and wanted else None, settings.store) as store:
            if wanted and store is not None:
                TokenStore(store).check_known(settings.max_unknown)
            yield Prepared(dataset, store, labels, folders, chosen, codes, output)


def reasons_without_labels(labels: Path) -> list[str]:
    """Why some tasks of a folder of tasks have no labels, as sentences."""
    return [f"{name}: {reason}" for name, reason in reasons_in(labels).items()]


def _histories(ready: Prepared) -> dict[str, Histories]:
    return {name: Histories(ready.dataset.path, found) for name, found in ready.labels.items()}


def _fit(settings: FitConfig, ready: Prepared, task: str, name: str, part: Any, histories: Histories) -> None:
    fit_predictor(
        name,
        part,
        ready.folders[task],
        ready.fitted(task, name),
        meds=ready.dataset.path,
        store=ready.store,
        run=_path(settings.run),
        codes=ready.codes[task],
        features=settings.features,
        seed=settings.seed,
        world_size=settings.world_size,
        stage=f"{name}/{task}",
        histories=histories,
    )


def _path(given: Path | str | None) -> Path | None:
    return Path(given) if given else None
