"""Predictions on disk: which tasks and predictors there are below a folder, and what their manifests say."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from ehr_core.errors import DataError, FormatError
from ehr_core.formats.folder import MANIFEST, Manifest, read_json, read_manifest, typed
from ehr_core.formats.predictions import FILE, Predictions, read_predictions
from ehr_core.outcomes import Question
from ehr_core.stages import NOT_APPLICABLE, read_reason

from ehr_eval.applying import FORMAT, VERSION


class _Counts(msgspec.Struct):
    rows: int
    subjects: int
    positives: int | None = None


class PredictionsContent(msgspec.Struct):
    """What readers need of the content of the manifest beside predictions."""

    question: Question | None = None
    task: str | None = None
    predictor: str | None = None
    dataset: str | None = None
    splits: dict[str, _Counts] | None = None


@dataclass(frozen=True)
class Found:
    """One predictor's folder for one task."""

    task: str
    predictor: str
    path: Path

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest as JSON, or an empty dict. Raises FormatError when it is of another format."""
        if not (self.path / MANIFEST).is_file():
            return {}
        manifest = read_manifest(self.path, FORMAT, VERSION)
        typed(manifest.content, PredictionsContent, self.path / MANIFEST, "$.content")
        return dataclasses.asdict(manifest)

    @property
    def content(self) -> dict[str, Any]:
        """Facts from the manifest; empty where another program wrote the predictions."""
        return dict(self.manifest.get("content", {}))

    @property
    def reason(self) -> str | None:
        """Why there are no predictions, where the predictor said so."""
        return read_reason(self.path)

    @functools.cached_property
    def predictions(self) -> Predictions:
        """The predictions, read once, and only where they are those that the manifest lists."""
        if self.manifest and FILE not in self.manifest["files"]:
            raise FormatError(f"{self.path / MANIFEST} does not list {FILE} beside it; predict anew")
        return read_predictions(self.path / FILE)

    @property
    def question(self) -> Question:
        """What is predicted, with the names of the manifest where it has them. Raises DataError when they disagree."""
        question = self.predictions.question
        named = msgspec.convert(self.content, PredictionsContent).question
        if not named:
            return question
        if named.kind != question.kind or (len(self.predictions) and len(named.names) != len(question.names)):
            raise DataError(f"{self.path / FILE} does not predict what {MANIFEST} beside it says")
        return named


def find(folder: Path) -> list[Found]:
    """Predictor folders: <task>/<predictor>/ or <predictor>/ below, or ``folder`` itself; by task and predictor."""

    def there(path: Path) -> bool:
        if (path / FILE).is_file() or (path / NOT_APPLICABLE).is_file():
            return True  # else its manifest tells that predictions were lost, which reading them will say
        return (path / MANIFEST).is_file() and read_json(path / MANIFEST, Manifest).format == FORMAT

    def visible(path: Path) -> list[Path]:
        return sorted(
            p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and ".partial-" not in p.name
        )

    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected predictions")
    if there(folder):
        content = Found("", "", folder).content
        place = folder.resolve()
        return [Found(content.get("task") or place.parent.name, content.get("predictor") or place.name, folder)]
    flat = [path for path in visible(folder) if there(path)]
    if flat:
        named = [Found("", path.name, path).content.get("task") for path in flat]
        task = next((name for name in named if name), folder.resolve().name)
        return [Found(task, path.name, path) for path in flat]
    nested = [Found(task.name, p.name, p) for task in visible(folder) for p in visible(task) if there(p)]
    if not nested:
        raise FormatError(f"{folder} has no predictions: expected <task>/<predictor>/{FILE} or <predictor>/{FILE}")
    return nested
