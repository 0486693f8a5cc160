"""Apply what was fitted: to the other splits of its labels, to another site, to new patients. Nothing is trained."""

import contextlib
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from ehr_core import config, plugins
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, DataError, FormatError, NotApplicable
from ehr_core.formats import tokens
from ehr_core.formats.folder import Manifest, check_free, new_folder, read_manifest, write_manifest
from ehr_core.formats.labels import Labels, label_table, read_labels
from ehr_core.formats.meds import read_events, shards, subject_splits
from ehr_core.formats.predictions import FILE, Predictions, prediction_table, read_predictions, write_predictions
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, Question
from ehr_core.protocols import PredictJob
from ehr_core.stages import NOT_APPLICABLE, write_reason

from ehr_eval.__about__ import __version__
from ehr_eval.datasets import dataset_name, output_folder, provided, to_predict
from ehr_eval.features import FeatureSet, Histories, coverage, matrix
from ehr_eval.fitted import ESTIMATOR, Fitted, open_fitted
from ehr_eval.label_notes import noted, say_notes
from ehr_eval.settings import ApplyConfig
from ehr_eval.user_labels import as_question, read_user_labels, source_of, write_user_labels

FORMAT, VERSION = "predictions", 1


def apply(settings: ApplyConfig) -> Predictions:
    """Write OUTPUT/predictions.parquet and a manifest, and open them.

    Raises ConfigError or FormatError, before any work, when what was fitted cannot answer this dataset.
    """
    check_splits(settings.splits)
    output = output_folder(settings.output)
    check_free(output)
    fitted = open_fitted(Path(settings.fitted))
    if fitted.reason is not None:
        raise NotApplicable(f"{fitted.path} could not be fitted: {fitted.reason}")
    _check_run(fitted, settings.run)
    source = to_predict(settings.source)
    with (
        provided(source) as dataset,
        tempfile.TemporaryDirectory(prefix="ehr-eval-") as scratch,
    ):
        labels = _asked_labels(settings, fitted, dataset.path)
        say_notes(labels)
        (folder,) = write_user_labels({labels.name: labels}, Path(scratch) / "labels", dataset.digest).values()
        with token_store(source, tokenizer_of(fitted), settings.store) as store:
            if store is not None:
                TokenStore(store).check_known(settings.max_unknown)
            run = Path(settings.run) if settings.run else None
            apply_fitted(
                fitted.path,
                folder,
                output,
                meds=dataset.path,
                store=store,
                run=run,
                splits=settings.splits,
                seed=settings.seed,
                max_unknown=settings.max_unknown,
            )
    if (output / NOT_APPLICABLE).is_file():
        raise NotApplicable(open_fitted(output).reason or "")
    return read_predictions(output / FILE)


def apply_fitted(
    fitted: Path,
    labels: Path,
    output: Path,
    *,
    meds: Path,
    store: Path | None = None,
    run: Path | None = None,
    splits: Sequence[str] = SPLITS,
    seed: int = 42,
    histories: Histories | None = None,
    max_unknown: float | None = None,
) -> Path:
    """Predictions of a fitted folder for a labels folder in the one form, with or without outcomes; returns OUTPUT.

    OUTPUT gets ``predictions.parquet`` and a manifest; ``not_applicable.json`` with the reason where nothing could be
    fitted, this dataset cannot be answered, or a prediction is no number. With ``max_unknown``, FormatError is raised
    where a larger share of what a baseline's features saw when they were fitted is missing.
    """
    opened = open_fitted(fitted)
    try:
        with new_folder(output) as target:
            if opened.reason is not None:
                raise NotApplicable(opened.reason)
            found = as_question(read_labels(labels), opened.asked())
            wanted = [split for split in found.splits if split in splits and len(found.tables[split])]
            if not wanted:
                raise NotApplicable(f"there is no sample in the splits {', '.join(splits)}")
            if opened.kind == "baseline":
                histories = histories or Histories(meds, found)
                predictions, notes = _apply_baseline(opened, histories, wanted, max_unknown)
                odd = sum((histories.of(split).treated for split in wanted), Counter[str]())
            else:
                odd = _treated(store, wanted)
                job = PredictJob(
                    fitted=fitted, labels=labels, splits=tuple(wanted), meds=meds, store=store, run=run, seed=seed
                )
                notes = []
                predictions = plugins.build("predictor", opened.part).predict(job)
            tables = [_table(opened, found.tables[split], split, predictions) for split in wanted]
            _write(target / FILE, tables)
            notes = [*found.content.get("notes", ()), *notes]
            facts = {"notes": notes, "treated": {name: count for name, count in sorted(odd.items()) if count}}
            write_manifest(target, _manifest(opened, found, labels, wanted, meds, seed, facts))
    except NotApplicable as reason:
        with new_folder(output) as target:
            write_reason(target, str(reason))
    return output


def _write(path: Path, tables: Sequence[pa.Table]) -> None:
    """Write predictions. Raises NotApplicable where they are no numbers, which no other predictor is to end for."""
    try:
        write_predictions(path, tables)
    except DataError as error:
        raise NotApplicable(f"its predictions cannot be: {str(error).removeprefix(f'{path}: ')}") from error


def check_splits(splits: Sequence[str]) -> None:
    """Raise ConfigError for names that no split has."""
    wrong = [split for split in splits if split not in SPLITS]
    if wrong or not splits:
        raise ConfigError(f"splits has {wrong[0] if wrong else 'nothing'!r}; allowed: {', '.join(SPLITS)}")


def tokenizer_of(fitted: Fitted) -> Path | None:
    """The tokenizer that a fitted predictor wants its tokens made with; None: it reads none."""
    if fitted.kind != "predictor":
        return None
    found: Path | None = plugins.build("predictor", fitted.part).tokenizer(fitted.path)
    return found


@contextlib.contextmanager
def token_store(source: Any, tokenizer: Path | None, given: Path | str | None) -> Iterator[Path | None]:
    """The dataset tokenized with a fitted tokenizer: what was given, or made for the time being. None: not needed."""
    if given or tokenizer is None:
        yield Path(given) if given else None
        return
    with tempfile.TemporaryDirectory(prefix="ehr-eval-") as scratch:
        store = Path(scratch) / "store"
        composed = config.compose("tokenize", [f"output={store}", f"fitted={tokenizer}"])
        composed["source"] = None
        settings = config.to_settings(composed)
        settings.source = source
        with contextlib.redirect_stdout(io.StringIO()) as said:  # no part of our result, and the folder goes again
            plugins.registry().load("command", "tokenize")(settings)
        print(said.getvalue().replace(f" in {store}", ""), file=sys.stderr, end="")
        yield store


# -- whom to predict


def _asked_labels(settings: ApplyConfig, fitted: Fitted, meds: Path) -> Labels:
    """The labels that were given, in the classes of what was fitted; else everyone at the last event."""
    if settings.labels is None:
        return noted(meds, last_events(meds, fitted.task), fit=False)
    found = read_user_labels(Path(settings.labels), meds, fitted.asked().kind, fit=False, splits=settings.splits)
    if len(found) > 1 and fitted.task not in found:
        raise ConfigError(
            f"labels has the tasks {', '.join(found)}; give the folder of one, as {fitted.task!r} was fitted"
        )
    labels = found[fitted.task] if len(found) > 1 else next(iter(found.values()))
    return as_question(labels, fitted.asked())


def last_events(meds: Path, name: str) -> Labels:
    """One sample for each subject that has an event with a time, at the last of them, without an outcome."""
    found = shards(meds)
    subject_splits(found)
    tables = {}
    for split in dict.fromkeys(shard.split for shard in found):
        frames = [
            read_events(shard)
            .filter(pl.col("time").is_not_null())
            .group_by("subject_id", maintain_order=True)
            .agg(pl.col("time").max().alias("prediction_time"))
            for shard in found
            if shard.split == split
        ]
        tables[split] = label_table(pl.concat(frames).to_arrow(), None, meds / split)
    if not any(len(table) for table in tables.values()):
        raise DataError(f"{meds} has no event with a time, so there is no time to predict at")
    return Labels(name, None, tables)


def _check_run(fitted: Fitted, run: Path | str | None) -> None:
    """Raise FormatError when another run was given than the one that the predictor was fitted on."""
    wanted = fitted.manifest.inputs.get("run") if fitted.manifest is not None else None
    if run is not None and wanted is not None and Run(run).manifest.digest != wanted:
        raise FormatError(f"{fitted.path} was fitted on the run {wanted[:12]}, and {run} is another; give that run")


# -- what is predicted


def _apply_baseline(
    fitted: Fitted, histories: Histories, splits: Sequence[str], most: float | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    columns = FeatureSet.load(fitted.path)
    estimator = plugins.build("baseline", fitted.part)
    estimator.load(fitted.path / ESTIMATOR, fitted.asked())
    read = [histories.of(split) for split in splits]
    notes = [] if most is None else _check_covered(fitted, columns, coverage(read, columns.counted), most)
    predictions = zip(splits, (estimator.predict(matrix(history, columns)) for history in read), strict=True)
    return dict(predictions), notes


def _check_covered(fitted: Fitted, columns: FeatureSet, covered: float, most: float) -> list[str]:
    """How much of the records the features see, in words. Raises FormatError where that is far less than when fitted.

    Rare codes are no features anywhere, so what counts as unknown is what is missing of the share that was seen then.
    """
    if not columns.counted:
        return []
    said = (
        f"the features of {fitted.predictor} see {covered:.1%} of the events before the prediction times, and saw "
        f"{columns.covered:.1%} of those that they were fitted on"
    )
    if 1.0 - covered / columns.covered > most:
        raise FormatError(
            f"{fitted.path}: {said}; the codes of these records belong to another vocabulary. With max_unknown above "
            f"{most:g} it is applied all the same"
        )
    print(f"note: {said}", file=sys.stderr)
    return [said]


def _table(fitted: Fitted, samples: pa.Table, split: str, predictions: Mapping[str, np.ndarray]) -> pa.Table:
    """Rows of one split. Raises FormatError when the predictor did not answer each sample once, with numbers."""
    question = fitted.asked()
    if split not in predictions or len(predictions[split]) != len(samples):
        count = len(predictions.get(split, ()))
        raise FormatError(
            f"{fitted.predictor}: {count} predictions for the {len(samples)} samples of the split {split!r}; a "
            "predictor must answer each of them once, in their order"
        )
    return prediction_table(samples, split, _bounded(np.asarray(predictions[split], np.float64), question), question)


def _bounded(prediction: np.ndarray, question: Question) -> np.ndarray:
    """Probabilities that rounding put outside [0, 1] are set to its ends."""
    return prediction.clip(0.0, 1.0) if question.kind in (BINARY, MULTICLASS, MULTILABEL) else prediction


def _treated(store: Path | None, splits: Sequence[str]) -> Counter[str]:
    """What was odd in the records of a token store."""
    found = read_manifest(store, tokens.FORMAT, tokens.VERSION).content.get("treated", {}) if store is not None else {}
    return sum((Counter(found[split]) for split in splits if split in found), Counter())


def _manifest(
    fitted: Fitted,
    labels: Labels,
    folder: Path,
    splits: Sequence[str],
    meds: Path,
    seed: int,
    facts: Mapping[str, Any],
) -> Manifest:
    kind, question = fitted.kind, fitted.asked()
    made_by = {f"ehr-eval=={__version__}", plugins.registry().version(kind, fitted.part.name)}
    assert fitted.manifest is not None, "one that was fitted has a manifest"
    inputs = {"labels": labels.digest, "fitted": fitted.manifest.digest, **source_of(folder)}
    if "run" in fitted.manifest.inputs:
        inputs["run"] = fitted.manifest.inputs["run"]
    content = {
        "task": labels.name if labels.question else fitted.task,
        "task_settings": labels.content.get("task"),
        "predictor": fitted.predictor,
        "kind": kind,
        "question": {"kind": question.kind, "names": list(question.names)},
        "dataset": dataset_name(meds),
        "splits": {split: labels.counts(split) for split in labels.splits},
        **facts,
    }
    settings = {"predictor": config.to_plain(fitted.part), "seed": seed, "splits": list(splits)}
    return Manifest(FORMAT, VERSION, sorted(made_by), settings, inputs, content)
