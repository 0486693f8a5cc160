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
from typing import Any, Literal

import msgspec
from ehr_core import plugins
from ehr_core.config import from_plain
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats import run
from ehr_core.formats.folder import MANIFEST, Manifest, read_json, read_manifest, typed
from ehr_core.outcomes import Question
from ehr_core.stages import NOT_APPLICABLE, read_reason

FORMAT, VERSION = "fitted", 1
ESTIMATOR = "estimator"
FINETUNED = "finetuned"
"""The predictor that applies the run folder of a fine-tuned model."""


class FittedContent(msgspec.Struct):
    """What readers need of the content of a fitted folder's manifest."""

    task: str
    predictor: str
    kind: Literal["baseline", "predictor"]
    question: Question


class _Settings(msgspec.Struct):
    predictor: dict[str, Any]


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
        return Fitted(path, path.parent.name, path.name, "", None, None, None, read_reason(path))
    if (path / MANIFEST).is_file() and read_json(path / MANIFEST, Manifest).format == run.FORMAT:
        return _open_run(path)
    if path.is_dir() and not (path / MANIFEST).is_file():
        below = sorted(place.parent for place in path.glob("*/" + MANIFEST))
        if below:
            raise FormatError(f"{path} is no fitted predictor itself; in it are {', '.join(map(str, below))}")
    manifest = read_manifest(path, FORMAT, VERSION)
    content = typed(manifest.content, FittedContent, path / MANIFEST, "$.content")
    settings = typed(manifest.settings, _Settings, path / MANIFEST, "$.settings")
    part = from_plain(content.kind, settings.predictor)
    return Fitted(path, content.task, content.predictor, content.kind, part, content.question, manifest)


def _open_run(path: Path) -> Fitted:
    found = run.Run(path)
    if found.question is None:
        raise ConfigError(
            f"{path} is a run that was not trained on labels, so it answers no question; fit a predictor on it with "
            "ehr-eval fit run=RUN labels=DIR"
        )
    config = plugins.registry().get("predictor", FINETUNED).config
    assert config is not None, "it has settings"
    task = (found.content.stage or "outcome").rpartition("/")[2]  # a predictor's stage ends in its task
    return Fitted(path, task, FINETUNED, "predictor", config(), found.question, found.manifest)
