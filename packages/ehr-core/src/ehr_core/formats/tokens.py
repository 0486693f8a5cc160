"""Token store: a subject's timeline as flat, memory-mapped arrays.

    STORE/manifest.json  vocabulary.json  tokenizer.json  prefix.json  <split>/<shard>.safetensors

Per shard: ``subject_id[S]`` int64, ascending; ``offset[S+1]`` int64; ``token[N]`` uint16 or uint32;
``time[N]`` int64 microseconds since 1970, never NO_TIME (tokens of one instant share it); further columns of length N;
and what is needed to make a static prefix for any window: ``birth[S]`` int64 (NO_TIME if unknown) and, ordered by
(subject, slot, time), ``static_offset[S+1]``, ``static_slot[M]`` uint16, ``static_token[M]``, ``static_time[M]``
(NO_TIME: known from the start).
"""

import dataclasses
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ehr_core.ages import completed_years
from ehr_core.errors import FormatError
from ehr_core.formats.folder import Manifest, read_json, read_manifest, write_json
from ehr_core.formats.vocabulary import Vocabulary

FORMAT, VERSION = "token-store", 1
NO_TIME = np.iinfo(np.int64).min
FIXED: tuple[str, ...] = ("subject_id", "offset", "token", "time", "birth")
FIXED += ("static_offset", "static_slot", "static_token", "static_time")
TOKENIZER = "tokenizer.json"
PREFIX = "prefix.json"


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

    def write(self, path: Path) -> None:
        """Write the shard as safetensors."""
        from safetensors.numpy import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(array) for name, array in self.arrays().items()}, path)


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


DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}
DTYPES |= {"U16": np.uint16, "U32": np.uint32, "I16": np.int16, "I8": np.int8, "F16": np.float16}


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as views of a read-only memory map; nothing is read until it is used.

    Raises FormatError for a truncated or foreign file.
    """
    try:
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = int.from_bytes(buffer[:8], "little")
        header = json.loads(buffer[8 : 8 + size])
        arrays = {}
        for name, spec in header.items():
            if name == "__metadata__":
                continue
            start, end = (8 + size + place for place in spec["data_offsets"])
            if end > len(buffer):
                raise ValueError("it ends before its data")
            flat: np.ndarray = np.frombuffer(
                buffer, dtype=DTYPES[spec["dtype"]], count=int(np.prod(spec["shape"])), offset=start
            )
            arrays[name] = flat.reshape(spec["shape"])
        return arrays
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise FormatError(f"{path} is damaged or no safetensors file: {error}") from error


class TokenStore:
    """A token store opened for reading. Shards are memory-mapped on first use."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path, FORMAT, VERSION)
        self.vocabulary = Vocabulary.load(self.path)
        if self.manifest.content.get("vocabulary") != self.vocabulary.digest:
            raise FormatError(f"{self.path}: vocabulary.json is not the one the tokens were made with; make it anew")
        self.prefix = load_prefix(self.path)

    @property
    def columns(self) -> list[str]:
        """Names of the further columns, each with one value a token."""
        return list(self.manifest.content["columns"])

    @property
    def unknown(self) -> float:
        """Share of all events that the vocabulary does not know; 0 where the manifest does not count them."""
        counts = self.manifest.content.get("coverage", {}).get("all", {}).values()
        events = sum(count["events"] for count in counts)
        return sum(count["unk_events"] for count in counts) / events if events else 0.0

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
        """The shards of a split, each as memory-mapped arrays."""
        for path in self.shards(split):
            arrays = map_arrays(path)
            missing = [name for name in FIXED if name not in arrays]
            if missing:
                raise FormatError(f"{path} lacks {', '.join(missing)}")
            fixed = {name: arrays.pop(name) for name in FIXED}
            yield TokenTable(**fixed, columns=arrays)


def write_prefix(folder: Path, prefix: Prefix) -> None:
    """Write ``prefix.json``."""
    write_json(folder / PREFIX, dataclasses.asdict(prefix))


def load_prefix(folder: Path) -> Prefix:
    """Read ``prefix.json``."""
    found: dict[str, Any] = read_json(folder / PREFIX)
    try:
        lists = {name: tuple(found[name]) for name in ("slots", "unknown", "tens", "units")}
        return Prefix(**lists, age_unknown=found["age_unknown"])
    except (TypeError, KeyError) as error:
        raise FormatError(f"{folder / PREFIX} is not a prefix: {error}") from error


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
