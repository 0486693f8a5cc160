"""Trackers that need no service: lines of JSON, and TensorBoard event files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import msgspec
from ehr_core.errors import FormatError
from ehr_core.formats.folder import write_text

from ehr_train.settings import JsonlConfig, TensorBoardConfig


class Jsonl:
    """``logs/metrics.jsonl``: one object a line with ``step``; NaN is null."""

    def __init__(self, settings: JsonlConfig):
        self._file: TextIO | None = None

    def start(self, folder: Path, settings: Mapping[str, Any], step: int, stage: str) -> None:
        """Open, and drop what an earlier life logged at ``step`` and later, or did not finish writing."""
        path = folder / "logs" / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and _step_of(line, path) < step]
        write_text(path, "".join(kept))
        self._file = path.open("a")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        assert self._file is not None, "start comes first"
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()

    def artifact(self, path: Path, name: str) -> None:
        """Keeps none."""

    def finish(self, status: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _step_of(line: str, path: Path) -> int:
    try:
        return msgspec.json.decode(line, type=_Line).step
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} has a line that is no entry ({error}); remove it") from None


class _Line(msgspec.Struct):
    step: int


class TensorBoard:
    """Event files in ``tensorboard/``, on disk after every entry so that a kill loses none."""

    def __init__(self, settings: TensorBoardConfig):
        self._writer: Any = None

    def start(self, folder: Path, settings: Mapping[str, Any], step: int, stage: str) -> None:
        """Open; readers of the files forget what an earlier life logged at ``step`` and later."""
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "tensorboard"
        path.mkdir(parents=True, exist_ok=True)
        earlier = any(path.glob("events.*"))
        self._writer = SummaryWriter(str(path), purge_step=step if earlier else None)
        if not earlier:
            self._writer.add_text("settings", f"```\n{json.dumps(dict(settings), indent=2)}\n```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def artifact(self, path: Path, name: str) -> None:
        """A picture (PNG) is shown, a text is shown as it is, and other files are not kept."""
        if path.suffix == ".png":
            from matplotlib.image import imread

            self._writer.add_image(name, imread(path)[..., :3], dataformats="HWC")
        elif path.suffix in (".txt", ".md", ".json"):
            self._writer.add_text(name, f"```\n{path.read_text()}\n```")

    def finish(self, status: str) -> None:
        """Close the writer."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
