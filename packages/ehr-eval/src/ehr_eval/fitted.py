"""Fitted folder: a baseline or predictor that was fitted on one task's labels, ready to be applied to any dataset.

FITTED/manifest.json     format "fitted": settings {predictor, features}, inputs {labels, source, run}, content {task,
                         predictor, kind, question}
FITTED/features.json     of a baseline: its columns
FITTED/estimator/        of a baseline: what it saved
FITTED/...               of a predictor: whatever it needs
FITTED/not_applicable.json   instead of all else, with the reason, where it could not be fitted
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehr_core import plugins
from ehr_core.config import from_plain
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats import run
from ehr_core.formats.folder import MANIFEST, Manifest, file_digest, read_json, read_manifest
from ehr_core.outcomes import KINDS, Question
from ehr_core.stages import NOT_APPLICABLE

FORMAT, VERSION = "fitted", 1
ESTIMATOR = "estimator"
FINETUNED = "finetuned"
"""The predictor that applies the run folder of a fine-tuned model."""


@dataclass(frozen=True)
class Fitted:
    """A fitted folder opened for reading."""

    path: Path
    task: str
    predictor: str
    """The name that it has among the predictors of its task."""
    kind: str
    """``baseline`` or ``predictor``."""
    part: Any
    """Settings of the component; None where there is nothing but a reason."""
    question: Question | None
    manifest: Manifest | None
    reason: str | None = None
    """Why nothing could be fitted."""

    def asked(self) -> Question:
        """The question that it answers."""
        assert self.question is not None, "only one that could not be fitted has none"
        return self.question


def open_fitted(path: Path) -> Fitted:
    """A fitted folder, or the run folder of a fine-tuned model. Raises FormatError when it is neither."""
    if (path / NOT_APPLICABLE).is_file():
        reason = str(read_json(path / NOT_APPLICABLE)["reason"])
        return Fitted(path, path.parent.name, path.name, "", None, None, None, reason)
    if (path / MANIFEST).is_file() and read_json(path / MANIFEST).get("format") == run.FORMAT:
        return _open_run(path)
    if path.is_dir() and not (path / MANIFEST).is_file():
        below = sorted(place.parent for place in path.glob("*/" + MANIFEST))
        if below:
            raise FormatError(f"{path} is no fitted predictor itself; in it are {', '.join(map(str, below))}")
    manifest = read_manifest(path, FORMAT, VERSION)
    content = manifest.content
    kind = str(content["kind"])
    _check_files(path, manifest, kind)
    part = from_plain(kind, manifest.settings["predictor"])
    return Fitted(path, content["task"], content["predictor"], kind, part, _question(content, path), manifest)


def _open_run(path: Path) -> Fitted:
    manifest = read_manifest(path, run.FORMAT, run.VERSION)
    if not manifest.content.get("question"):
        raise ConfigError(
            f"{path} is a run that was not trained on labels, so it answers no question; fit a predictor on it with "
            "ehr-eval fit run=RUN labels=DIR"
        )
    config = plugins.registry().get("predictor", FINETUNED).config
    assert config is not None, "it has settings"
    task = str(manifest.content.get("stage") or "outcome").rpartition("/")[2]  # a predictor's stage ends in its task
    return Fitted(path, task, FINETUNED, "predictor", config(), _question(manifest.content, path), manifest)


def _question(content: dict[str, Any], path: Path) -> Question:
    found = content.get("question")
    if not isinstance(found, dict) or found.get("kind") not in KINDS:
        raise FormatError(f"{path / MANIFEST} does not say which kind of outcome was learned; fit it anew")
    return Question(found["kind"], tuple(found["names"]))


def _check_files(path: Path, manifest: Manifest, kind: str) -> None:
    """Raise FormatError when a baseline's files are not those that its manifest was written with."""
    if kind != "baseline":
        return  # what a predictor keeps may be large; it checks that itself
    for name, digest in manifest.files.items():
        if not (path / name).is_file() or file_digest(path / name) != digest:
            raise FormatError(
                f"{path / name} is missing or is not what was fitted (features and estimator belong together)"
            )
