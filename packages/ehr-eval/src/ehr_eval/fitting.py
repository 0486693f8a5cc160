"""Fit baselines and predictors on labels: each leaves a folder to apply to any dataset (`ehr_eval.fitted`)."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehr_core import config, plugins
from ehr_core.errors import ConfigError, NotApplicable
from ehr_core.formats.folder import Manifest, check_free, new_folder, write_manifest
from ehr_core.formats.labels import Labels, read_labels
from ehr_core.formats.run import Run
from ehr_core.protocols import Features, FitJob, OutcomeCodes
from ehr_core.stages import write_reason

from ehr_eval.__about__ import __version__
from ehr_eval.features import Histories, choose, matrix
from ehr_eval.fitted import ESTIMATOR, FORMAT, VERSION
from ehr_eval.parts import kind_of, outcomes_of, with_seed
from ehr_eval.settings import FeaturesConfig
from ehr_eval.user_labels import nothing_to_learn, source_of


def fit_predictor(
    name: str,
    part: Any,
    labels: Path,
    output: Path,
    *,
    meds: Path,
    store: Path | None = None,
    run: Path | None = None,
    codes: OutcomeCodes | None = None,
    features: FeaturesConfig | None = None,
    seed: int = 42,
    world_size: int = 1,
    strategy: Any = None,
    trackers: Mapping[str, Any] | None = None,
    stage: str = "",
    histories: Histories | None = None,
) -> None:
    """Fit one baseline or predictor (settings ``part``) on a labels folder in the one form, and write OUTPUT whole.

    OUTPUT gets ``not_applicable.json`` with the reason instead when the data or the run cannot answer. ``histories``
    may be passed by who fits several baselines on the same labels. A killed predictor goes on in a hidden folder
    beside OUTPUT. Raises ConfigError for a component that does not speak the labels' kind.
    """
    found = read_labels(labels)
    question = found.asked()
    kind = kind_of(part)
    if question.kind not in outcomes_of(kind, part):
        speaks = " and ".join(outcomes_of(kind, part)) or "no kind of outcome"
        raise ConfigError(f"{kind} {name!r} speaks {speaks}, and the labels {found.name!r} are {question.kind}")
    check_free(output)
    part = with_seed(part, seed)
    manifest = _manifest(name, part, found, labels, features or FeaturesConfig(), run, seed)
    try:
        with new_folder(output) as target:
            if kind == "baseline":
                _fit_baseline(part, found, histories or Histories(meds, found), features or FeaturesConfig(), target)
            else:
                # What a killed predictor left is only of use to the same settings on the same inputs.
                work = output.parent / f".{output.name}.work-{manifest.digest[:12]}"
                job = FitJob(
                    labels=labels,
                    output=target,
                    work=work,
                    meds=meds,
                    store=store,
                    run=run,
                    codes=codes,
                    strategy=strategy,
                    trackers=dict(trackers or {}),
                    stage=stage,
                    seed=seed,
                    world_size=world_size,
                )
                _fit_predictor(part, job)
            write_manifest(target, manifest)
    except NotApplicable as reason:
        with new_folder(output) as target:
            write_reason(target, str(reason))


def _fit_baseline(part: Any, labels: Labels, histories: Histories, features: FeaturesConfig, target: Path) -> None:
    estimator = plugins.build("baseline", part)
    reason = nothing_to_learn(labels)
    if reason is not None:
        raise NotApplicable(reason)
    columns = choose(histories.of("train"), features)
    question = labels.asked()
    given = {
        split: Features(columns.names, matrix(histories.of(split), columns), _array(labels, split))
        for split in ("train", "tuning")
    }
    estimator.fit(question, given["train"], given["tuning"])
    columns.save(target)
    (target / ESTIMATOR).mkdir()
    estimator.save(target / ESTIMATOR)


def _array(labels: Labels, split: str) -> Any:
    """Labels of a split in the shape of the kind; no rows where the split has no labels."""
    return labels.array(split) if split in labels.tables else labels.array("train")[:0]


def _fit_predictor(part: Any, job: FitJob) -> None:
    job.work.mkdir(parents=True, exist_ok=True)
    try:
        plugins.build("predictor", part).fit(job)
    except NotApplicable:
        shutil.rmtree(job.work, ignore_errors=True)
        raise
    shutil.rmtree(job.work, ignore_errors=True)


def _manifest(
    name: str, part: Any, labels: Labels, folder: Path, features: FeaturesConfig, run: Path | None, seed: int
) -> Manifest:
    kind, question = kind_of(part), labels.asked()
    made_by = {f"ehr-eval=={__version__}", plugins.registry().version(kind, part.name)}
    inputs = {"labels": labels.digest, **source_of(folder)}
    settings = {"predictor": config.to_plain(part), "seed": seed}
    if kind == "baseline":
        settings["features"] = config.to_plain(features)
    elif run is not None:
        inputs["run"] = Run(run).manifest.digest
    content = {
        "task": labels.name,
        "predictor": name,
        "kind": kind,
        "question": {"kind": question.kind, "names": list(question.names)},
        "task_settings": labels.content.get("task"),
        "splits": {split: labels.counts(split) for split in labels.splits},
    }
    return Manifest(FORMAT, VERSION, sorted(made_by), settings, inputs, content)
