"""The datasets that commands work on, and the places where they put their output."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from ehr_core import plugins
from ehr_core.constants import DATA, SPLITS
from ehr_core.errors import ConfigError
from ehr_core.executors import Serial
from ehr_core.formats.folder import digest_of, read_json
from ehr_core.formats.meds import SUBJECT_SPLITS
from ehr_core.plugin import MedsConfig, SerialConfig
from ehr_core.protocols import Executor
from ehr_core.stages import settings_key

from ehr_eval.settings import MISSING


@dataclass(frozen=True)
class Dataset:
    """A MEDS dataset that a source provided: where it is, and what identifies it."""

    path: Path
    digest: str


@contextlib.contextmanager
def provided(source: Any, executor: Executor | None = None) -> Iterator[Dataset]:
    """The dataset of a source's settings. What the source writes goes to a temporary folder, removed at the end."""
    if source == MISSING or source is None:
        raise ConfigError("source is required: give source=NAME, for example source=meds source.path=DIR")
    built = plugins.build("source", source)
    with tempfile.TemporaryDirectory(prefix="ehr-eval-") as scratch:
        path = built.provide(Path(scratch), executor or Serial(SerialConfig()))
        yield Dataset(Path(path), digest_of(settings_key(source)))


def to_predict(source: Any) -> Any:
    """Settings of a source of which all is predicted: files of which nothing says the split count as held_out."""
    if not isinstance(source, MedsConfig) or source.path == MISSING or source.split is not None:
        return source
    data, splits = Path(source.path) / DATA, Path(source.path) / SUBJECT_SPLITS
    flat = data.is_dir() and any(path.relative_to(data).parts[0] not in SPLITS for path in data.rglob("*.parquet"))
    return replace(source, split="held_out") if flat and not splits.is_file() else source


def dataset_name(meds: Path) -> str:
    """What ``metadata/dataset.json`` calls the dataset; empty where it does not say."""
    path = meds / "metadata" / "dataset.json"
    return (read_json(path, _Facts).dataset_name or "") if path.is_file() else ""


class _Facts(msgspec.Struct):
    dataset_name: str | None = None


def output_folder(given: Path | str | None) -> Path:
    """The folder that a command was told to make, or a fresh one below ``outputs/``."""
    return Path(given) if given else Path(datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))
