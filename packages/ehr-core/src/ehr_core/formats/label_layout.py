"""Where the files of a labels folder are, in whichever of the usual layouts."""

from pathlib import Path

from ehr_core.constants import SPLITS
from ehr_core.errors import FormatError

SUFFIXES = (".parquet", ".csv")


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
    if len(flat) > 1 and (named := [path for path in flat if not any(sign.isdigit() for sign in path.stem)]):
        raise FormatError(
            f"{folder} has {len(flat)} files, {named[0].name} among them, that are neither {', '.join(SPLITS)} nor "
            "numbered shards; give each task a folder of its own"
        )
    return {"": flat} if flat else {}


def _refuse_others(others: list[Path], folder: Path) -> None:
    if others:
        raise FormatError(
            f"{folder} has {others[0].name} beside the files of its splits, which are called {', '.join(SPLITS)}; "
            "rename or remove it"
        )


def _tables(folder: Path, deep: bool) -> list[Path]:
    paths = folder.rglob("*") if deep else folder.iterdir()
    return sorted(p for p in paths if p.suffix in SUFFIXES and p.is_file() and not p.name.startswith("."))
