"""Token store: a subject's timeline as flat, memory-mapped arrays.

    STORE/manifest.json  vocabulary.json  tokenizer.json  prefix.json  <split>/<shard>.safetensors

Per shard: ``subject_id[S]`` int64, ascending; ``offset[S+1]`` int64; ``token[N]`` uint16 or uint32;
``time[N]`` int64 microseconds since 1970, never NO_TIME (tokens of one instant share it); further columns of length N;
and what is needed to make a static prefix for any window: ``birth[S]`` int64 (NO_TIME if unknown) and, ordered by
(subject, slot, time), ``static_offset[S+1]``, ``static_slot[M]`` uint16, ``static_token[M]``, ``static_time[M]``
(NO_TIME: known from the start).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ehr_core.ages import completed_years
from ehr_core.errors import FormatError
from ehr_core.formats.arrays import map_arrays
from ehr_core.formats.folder import (
    MANIFEST,
    Manifest,
    check_listed,
    read_json,
    read_manifest,
    typed,
    verify,
    write_json,
)
from ehr_core.formats.vocabulary import Vocabulary

FORMAT, VERSION = "token-store", 1
NO_TIME = np.iinfo(np.int64).min
_ID = ("uint16", "uint32")
FIXED = {"subject_id": ("int64",), "offset": ("int64",), "token": _ID, "time": ("int64",), "birth": ("int64",)}
FIXED |= {"static_offset": ("int64",), "static_slot": ("uint16",), "static_token": _ID, "static_time": ("int64",)}
"""Arrays that every shard has, and their types."""
TOKENIZER = "tokenizer.json"
PREFIX = "prefix.json"
TOKENIZER_FILES = ("vocabulary.json", TOKENIZER, PREFIX, "intervals.json")
"""What says how the tokens were made."""


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """One shard in memory; see the module for each array. ``columns`` holds the further ones."""

    subject_id: np.ndarray
    offset: np.ndarray
    token: np.ndarray
    time: np.ndarray
    birth: np.ndarray
    static_offset: np.ndarray
    static_slot: np.ndarray
    static_token: np.ndarray
    static_time: np.ndarray
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return {name: getattr(self, name) for name in FIXED} | self.columns

    def fits(self) -> bool:
        """Whether lengths and offsets belong together."""
        subjects, rows, statics = len(self.subject_id), len(self.token), len(self.static_token)
        flat = all(array.ndim == 1 for array in self.arrays().values())
        lengths = [
            len(self.birth) == subjects,
            len(self.time) == rows,
            *(len(c) == rows for c in self.columns.values()),
        ]
        lengths += [len(self.static_slot) == statics, len(self.static_time) == statics]
        return (
            flat
            and all(lengths)
            and _cuts(self.offset, subjects, rows)
            and _cuts(self.static_offset, subjects, statics)
        )

    def write(self, path: Path) -> None:
        """Write the shard as safetensors."""
        from safetensors.numpy import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(array) for name, array in self.arrays().items()}, path)


def _cuts(offset: np.ndarray, parts: int, whole: int) -> bool:
    """Whether offsets cut a whole into parts, in order."""
    return len(offset) == parts + 1 and offset[0] == 0 and offset[-1] == whole and bool((np.diff(offset) >= 0).all())


@dataclasses.dataclass(frozen=True)
class Prefix:
    """How the static prefix of a window is made: one token a slot, then age in two digits.

    Slot k gives the last ``static_token`` of that slot with ``static_time <= t`` or ``unknown[k]``. With ``tens`` and
    ``units`` (ids of the digits 0 to 9) the completed years at t, up to 99, follow as two tokens, or ``age_unknown``
    twice. Nothing after t is looked at.
    """

    slots: tuple[str, ...] = ()
    unknown: tuple[int, ...] = ()
    tens: tuple[int, ...] = ()
    units: tuple[int, ...] = ()
    age_unknown: int = 0

    def __len__(self) -> int:
        return len(self.slots) + (2 if self.tens else 0)


class StoreContent(msgspec.Struct):
    """What readers need of the content of a store's manifest; whoever shows the rest finds it there."""

    vocabulary: str
    """Digest of the vocabulary whose ids the tokens are."""
    columns: list[str]
    coverage: dict[str, dict[str, dict[str, int]]] = {}
    splits: dict[str, dict[str, int]] = {}


class TokenizerFile(msgspec.Struct):
    """``tokenizer.json``."""

    name: str
    settings: dict[str, Any] = {}
    state: dict[str, Any] = {}


class TokenStore:
    """A token store opened for reading. Shards are memory-mapped on first use."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path, FORMAT, VERSION, TOKENIZER_FILES)
        self.content = typed(self.manifest.content, StoreContent, self.path / MANIFEST, "$.content")
        self.vocabulary = Vocabulary.load(self.path)
        if self.content.vocabulary != self.vocabulary.digest:
            raise FormatError(f"{self.path}: vocabulary.json is not the one the tokens were made with; make it anew")
        self.prefix = load_prefix(self.path)

    @property
    def columns(self) -> list[str]:
        """Names of the further columns, each with one value a token."""
        return list(self.content.columns)

    @property
    def unknown(self) -> float:
        """Share of all events that the vocabulary does not know; 0 where the manifest does not count them."""
        counts = self.content.coverage.get("all", {}).values()
        events = sum(count.get("events", 0) for count in counts)
        return sum(count.get("unk_events", 0) for count in counts) / events if events else 0.0

    def check_known(self, most: float) -> None:
        """Raise FormatError when more than a share of the events is unknown: these are not the records to apply to."""
        if self.unknown > most:
            raise FormatError(
                f"{self.unknown:.0%} of the events of these records are unknown to what was trained; their codes "
                f"belong to another vocabulary. With max_unknown above {most:g} it is applied all the same"
            )

    def splits(self) -> list[str]:
        """Names of the splits there are."""
        return sorted(path.name for path in self.path.iterdir() if path.is_dir())

    def shards(self, split: str) -> list[Path]:
        """Files of a split in order. Raises FormatError when the split is missing."""
        found = sorted((self.path / split).glob("*.safetensors"), key=lambda p: (len(p.stem), p.stem))
        if not found:
            raise FormatError(f"{self.path} has no split {split!r}; it has {', '.join(self.splits()) or 'none'}")
        return found

    def tables(self, split: str) -> Iterator[TokenTable]:
        """The shards of a split, each as memory-mapped arrays, once their content is what the manifest says."""
        paths = self.shards(split)
        check_listed(self.path, self.manifest, paths)
        verify(self.path, self.manifest, [f"{split}/"])
        for path in paths:
            yield read_shard(path, self.columns)


def read_shard(path: Path, columns: Sequence[str]) -> TokenTable:
    """A shard with these further columns. Raises FormatError for arrays that do not fit each other."""
    arrays = map_arrays(path)
    wanted = {*FIXED, *columns}
    if arrays.keys() != wanted:
        odd = ", ".join(sorted(arrays.keys() ^ wanted))
        raise FormatError(f"{path} and {MANIFEST} differ in the arrays {odd}; make the store anew")
    for name, kinds in FIXED.items():
        if arrays[name].dtype.name not in kinds:
            raise FormatError(f"{path}: {name} is {arrays[name].dtype}, expected {' or '.join(kinds)}")
    fixed = {name: arrays.pop(name) for name in FIXED}
    table = TokenTable(**fixed, columns=arrays)
    if not table.fits():
        raise FormatError(
            f"{path}: its offsets and the lengths of its arrays do not fit each other; make the store anew"
        )
    return table


def write_prefix(folder: Path, prefix: Prefix) -> None:
    """Write ``prefix.json``."""
    write_json(folder / PREFIX, dataclasses.asdict(prefix))


def load_prefix(folder: Path) -> Prefix:
    """Read ``prefix.json``."""
    prefix = read_json(folder / PREFIX, Prefix)
    if len(prefix.unknown) != len(prefix.slots) or {len(prefix.tens), len(prefix.units)} not in ({0}, {10}):
        raise FormatError(
            f"{folder / PREFIX} needs an unknown token a slot, and no digits of an age or ten of each kind"
        )
    return prefix


def prefix_tokens(prefix: Prefix, table: TokenTable, subject: int, time: int) -> np.ndarray:
    """Static prefix (P,) int64 of the subject in row ``subject`` of a shard, as known at ``time`` (microseconds).

    NO_TIME is before everything: only what is known from the start is used, and age is unknown.
    """
    tokens = np.empty(len(prefix), np.int64)
    tokens[: len(prefix.slots)] = prefix.unknown
    start, stop = int(table.static_offset[subject]), int(table.static_offset[subject + 1])
    for row in range(start, stop):  # ordered by slot, then time: a later row that is known by now wins
        if table.static_time[row] <= time:
            tokens[int(table.static_slot[row])] = table.static_token[row]
    if prefix.tens:
        birth = int(table.birth[subject])
        if birth == NO_TIME or time == NO_TIME or time < birth:
            tokens[-2:] = prefix.age_unknown
        else:
            age = min(int(completed_years(np.array([birth]), np.array([time]))[0]), 99)
            tokens[-2], tokens[-1] = prefix.tens[age // 10], prefix.units[age % 10]
    return tokens
