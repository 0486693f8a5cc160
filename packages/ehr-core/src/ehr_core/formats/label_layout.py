"""Where the files of a labels folder are, in whichever of the usual layouts."""

import re
from pathlib import Path

from ehr_core.constants import SPLITS
from ehr_core.errors import FormatError

SUFFIXES = (".parquet", ".csv")
SHARD = re.compile(r"\d+([-_.]\d+)*|(part|shard|chunk|batch|file|data|labels?)([-_.]?\d|[-_.]).*")
"""What one of several files of a task is called: a number, or such a word before one; anything else is another task."""


def has_labels(folder: Path) -> bool:
    """Whether a folder holds labels of one task, in any layout; a file holds those of all splits."""
    return is_table(folder) or (folder.is_dir() and bool(_layout(folder)))


def is_table(path: Path) -> bool:
    """Whether a path is a file that labels may be in."""
    return path.suffix in SUFFIXES and path.is_file()


def label_files(folder: Path) -> dict[str, list[Path]]:
    """Files of each split, or of the split ``""`` where they do not say. Raises FormatError when there are none."""
    if is_table(folder):
        return {"": [folder]}
    if not folder.exists():
        raise FormatError(f"{folder} does not exist; expected labels")
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected labels: {', '.join(f'{s}.parquet' for s in SPLITS)}")
    found = _layout(folder)
    if not found:
        raise FormatError(
            f"{folder} has no labels: expected <split>.parquet, <split>.csv, <split>/*.parquet for "
            f"{', '.join(SPLITS)}, or Parquet files of all splits together"
        )
    return found


def _layout(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for split in SPLITS:
        alone = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
        if len(alone) > 1:
            raise FormatError(f"{folder} has both {alone[0].name} and {alone[1].name}; remove one")
        below = _tables(folder / split, deep=True) if (folder / split).is_dir() else []
        if alone and below:
            raise FormatError(f"{folder} has both {alone[0].name} and a folder {split}; remove one")
        if alone or below:
            found[split] = alone or below
    flat = _tables(folder, deep=False)
    if found:
        _refuse_others([path for path in flat if path.stem not in SPLITS], folder)
        return found
    if len(flat) > 1 and (named := [path for path in flat if not SHARD.fullmatch(path.stem)]):
        raise FormatError(
            f"{folder} has {len(flat)} files, {named[0].name} among them, that are neither {', '.join(SPLITS)} nor "
            "numbered shards (0, part-0, labels_A); give each task a folder of its own"
        )
    below = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not flat and below and all(path.name.isdigit() for path in below):
        deep = _tables(folder, deep=True)
        # Numbers are shards, unless splits are below them: those are tasks that are called by a number.
        told = any({*path.relative_to(folder).parent.parts, path.stem} & {*SPLITS} for path in deep)
        flat = [] if told else deep
    return {"": flat} if flat else {}


def _refuse_others(others: list[Path], folder: Path) -> None:
    if others:
        raise FormatError(
            f"{folder} has {others[0].name} beside the files of its splits, which are called {', '.join(SPLITS)}; "
            "rename or remove it"
        )


def _tables(folder: Path, deep: bool) -> list[Path]:
    """Tables in a folder in order; what is hidden, or below a hidden folder, is none."""
    paths = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path
        for path in paths
        if is_table(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
