"""Building blocks of sources that turn tables of records into MEDS, in memory that is bounded by a batch or a shard.

`plan` says where each subject goes and `convert` does the rest. `spool` takes the events of one table in the table's
order, batch by batch, and leaves them on disk with each shard's rows together; `write_shard` reads a shard's rows back,
sorts and writes them. Rows of one time keep the order of the spools, then that of the table, so the same tables give
the same bytes.

What is odd in the tables, and what became of it, is in ``metadata/left_out.json`` and ``metadata/treated.json``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError
from ehr_core.formats.folder import write_json
from ehr_core.formats.parquet import write_table
from ehr_core.progress import track
from ehr_core.protocols import Executor
from numpy.typing import ArrayLike

from ehr_tokenize.sources.cells import Reading, check_clocks
from ehr_tokenize.sources.settings import TablesConfig
from ehr_tokenize.sources.settling import INNER, as_visit, settled
from ehr_tokenize.sources.splits import shares_of, split_of
from ehr_tokenize.sources.times import offset_name

Step = TypeVar("Step")
MEDS_VERSION = "0.4.1"
SCHEMA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        ("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        ("numeric_value", pa.float32()),
        ("text_value", pa.large_string()),
        ("unit", pa.string()),
    ]
)
SPOOL_SCHEMA = SCHEMA.append(pa.field("visit", pa.int64())).append(pa.field("day", pa.date32()))
EVENTS: dict[str, Any] = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
    "unit": pl.String,
    "visit": pl.Int64,
    "day": pl.Date,
}
"""Columns that `spool` takes; ``visit`` is a number that the events of one visit of a subject share, ``day`` the day of
the event where it is not that of its time (another clock wrote it)."""
UNITS: dict[str, Any] = {"code": pl.String, "unit": pl.String, "numbers": pl.Int64}
BOOK: dict[str, Any] = {"code": pl.String, "description": pl.String, "parent": pl.String}
"""What `spool` notes of each code; ``parent`` is the code that it narrows down, as ``LOINC//718-7`` for one in g/dL."""
BOOK_SCHEMA = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        ("description", pa.string()),
        ("parent_codes", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Plan:
    """Where each subject goes. Shapes: S subjects, K shards."""

    subject_id_S: np.ndarray
    """int64, ascending."""
    shard_S: np.ndarray
    """int64 number of the subject's shard, counted through all splits."""
    pieces: tuple[tuple[str, int], ...]
    """(K) split of each shard, and its number there."""

    @property
    def split_names(self) -> list[str]:
        """(S) name of the split of each subject."""
        return np.array([split for split, _ in self.pieces])[self.shard_S].tolist()


def plan(subject_id: np.ndarray, settings: TablesConfig) -> Plan:
    """Splits by hash, and shards of at most ``shard_subjects`` in order of id; a split without subjects has one, too.

    Raises ConfigError for shares that do not add up to 1 and for shards of nobody.
    """
    shares = shares_of(settings.train, settings.tuning, settings.held_out)
    if settings.shard_subjects < 1:
        raise ConfigError(f"source.shard_subjects is {settings.shard_subjects}; it must be at least 1")
    subject_id_S = np.sort(subject_id)
    split_S = split_of(subject_id_S, settings.seed, shares)
    shard_S = np.zeros(len(subject_id_S), np.int64)
    pieces: list[tuple[str, int]] = []
    for index, split in enumerate(SPLITS):
        members = np.flatnonzero(split_S == index)
        shard_S[members] = len(pieces) + np.arange(len(members)) // settings.shard_subjects
        pieces += [(split, number) for number in range(max(1, -(-len(members) // settings.shard_subjects)))]
    return Plan(subject_id_S, shard_S, tuple(pieces))


@dataclass(frozen=True)
class Spooled:
    """Events of one table on disk."""

    path: Path
    places: dict[int, list[int]]
    """Shard to the numbers of its record batches, in order."""
    book: pl.DataFrame
    """Each code once, as `BOOK`."""
    reading: Reading
    """What happened to rows and cells."""
    units: pl.DataFrame
    """Numbers by ``code`` and ``unit``, as `UNITS`."""
    role: str
    """``starts`` and ``ends`` of visits; ``deaths``; ``once``: equal events of a subject count once; else empty."""


def spool(plan: Plan, path: Path, parts: Iterable[pl.DataFrame], reading: Reading, role: str = "") -> Spooled:
    """Write events (columns of `EVENTS` and `BOOK`; missing ones are null), each shard's rows of a part together.

    Events of nobody in the plan are left out and counted, as are events with a null ``code``. Static events have a null
    ``time`` and a true ``static``; other events without a time are left out and counted.
    """
    places: dict[int, list[int]] = {}
    book, units = pl.DataFrame(schema=BOOK), pl.DataFrame(schema=UNITS)
    written = 0
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SPOOL_SCHEMA, options=options) as writer:
        for part in parts:
            kept = _kept(plan, part, reading.left_out)
            new = kept.select(_all(kept, BOOK)).unique("code", keep="first", maintain_order=True)
            book = pl.concat([book, new]).unique("code", keep="first", maintain_order=True)
            units = _sum_units([units, _units(kept)])
            for (shard,), rows in kept.group_by("shard", maintain_order=True):
                table = rows.select(_all(rows, EVENTS)).to_arrow().cast(SPOOL_SCHEMA).combine_chunks()
                writer.write_table(table)
                count = len(table.to_batches())
                places.setdefault(int(shard), []).extend(range(written, written + count))
                written += count
    return Spooled(path, places, book, reading, units, role)


def _units(events: pl.DataFrame) -> pl.DataFrame:
    """How many numbers of each code have which unit."""
    if "unit" not in events.columns or "numeric_value" not in events.columns:
        return pl.DataFrame(schema=UNITS)
    numbers = events.filter(pl.col("numeric_value").is_not_null())
    return numbers.group_by("code", "unit").agg(pl.len().cast(pl.Int64).alias("numbers"))


def _sum_units(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(parts).group_by("code", "unit").agg(pl.col("numbers").sum()).sort("code", "unit", nulls_last=False)


def _kept(plan: Plan, part: pl.DataFrame, left_out: Counter[str]) -> pl.DataFrame:
    """The rows that are events of somebody, with the number of their shard."""
    static = part["static"] if "static" in part.columns else pl.repeat(False, len(part), eager=True)
    subject_N = part["subject_id"].fill_null(-1).to_numpy()
    if not len(plan.subject_id_S):
        return part.clear().with_columns(pl.lit(0).alias("shard"))
    at_N = np.minimum(np.searchsorted(plan.subject_id_S, subject_N), len(plan.subject_id_S) - 1)
    known = pl.Series(plan.subject_id_S[at_N] == subject_N) & part["subject_id"].is_not_null()
    timed = part["time"].is_not_null() | static
    coded = part["code"].is_not_null()
    for reason, bad in (("no such subject", ~known), ("no time", known & ~timed), ("no code", known & timed & ~coded)):
        if bad.any():
            left_out[reason] += int(bad.sum())
    return part.with_columns(pl.Series("shard", plan.shard_S[at_N])).filter(known & timed & coded)


def _all(part: pl.DataFrame, schema: Mapping[str, Any]) -> list[pl.Expr]:
    return [
        (pl.col(name) if name in part.columns else pl.lit(None)).cast(kind).alias(name) for name, kind in schema.items()
    ]


def convert(
    plan: Plan, output: Path, steps: Mapping[str, Step], function: Callable[[Step], Spooled], executor: Executor
) -> pl.DataFrame:
    """Spool the steps, in the order of events at one time, and write ``data``; returns all codes in order, as `BOOK`.

    What was left out is in ``metadata/left_out.json``, by name of the step and reason, what was changed in
    ``metadata/treated.json``, and both are said on stderr. Raises DataError for times on clocks of several zones.
    """
    spools = list(track(executor.map(function, list(steps.values())), "read", len(steps), "tables"))
    by_name = dict(zip(steps, spools, strict=True))
    readings = {name: spooled.reading for name, spooled in by_name.items()}
    check_clocks(readings)
    moved = _write_shards(plan, output, spools, executor)
    left_out, treated = left_and_treated(readings)
    write_treated(output, left_out, {**treated, "times": moved}, mixed_units([s.units for s in spools]))
    book = _gather_book(spools)
    if moved[INNER]:
        book = pl.concat([book, book.with_columns(as_visit(pl.col("code")).alias("code"))])
    return book.unique("code", keep="first", maintain_order=True).sort("code")


Counts = Mapping[str, Mapping[str, int]]
"""How often, by name of a step or list and by reason."""


def left_and_treated(readings: Mapping[str, Reading]) -> tuple[Counts, Counts]:
    """What `write_treated` takes, of readings by name."""
    left_out = {name: dict(reading.left_out) for name, reading in readings.items() if reading.left_out.total()}
    return left_out, {name: reading.treated + _zones(reading) for name, reading in readings.items()}


def _zones(reading: Reading) -> Counter[str]:
    """Times that were written with a zone other than UTC, by that."""
    read = f"read as {reading.zone}" if reading.zone else "taken without it"
    return Counter({f"times written in zone {offset_name(o)} ({read})": n for o, n in reading.offsets.items() if o})


def mixed_units(parts: Sequence[pl.DataFrame]) -> dict[str, dict[str, int]]:
    """Codes whose numbers have several units, or a unit only at times: numbers by unit (empty: none)."""
    units = _sum_units([pl.DataFrame(schema=UNITS), *parts])
    mixed = units.filter(pl.len().over("code") > 1)
    found: dict[str, dict[str, int]] = {}
    for code, unit, number in mixed.rows():
        found.setdefault(code, {})[unit or ""] = number
    return found


def write_treated(
    output: Path,
    left_out: Counts,
    treated: Counts,
    units: Counts,
) -> None:
    """Write and say what was left out and what was changed, and codes with several units. Counts of 0 are dropped."""
    folder = output / "metadata"
    folder.mkdir(exist_ok=True)
    changed = {name: {r: n for r, n in sorted(reasons.items()) if n} for name, reasons in treated.items()}
    changed = {name: reasons for name, reasons in changed.items() if reasons}
    write_json(folder / "left_out.json", left_out)
    write_json(folder / "treated.json", {**changed, **({"units that differ": units} if units else {})})
    for name, reasons in left_out.items():
        said = ", ".join(f"{count:,} rows with {reason}" for reason, count in sorted(reasons.items()))
        print(f"left out of {name}: {said}", file=sys.stderr)
    for name, reasons in changed.items():
        said = "; ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
        print(f"treated in {name}: {said}", file=sys.stderr)
    if units:
        code, numbers = next(iter(units.items()))
        said = ", ".join(f"{number:,} in {unit or 'none'}" for unit, number in numbers.items())
        print(f"units differ within {len(units):,} codes, as {code}: {said}", file=sys.stderr)


@dataclass(frozen=True)
class ShardJob:
    """A shard to write, and where its rows are: file, numbers of record batches, role."""

    path: Path
    places: tuple[tuple[Path, tuple[int, ...], str], ...]


def _write_shards(plan: Plan, output: Path, spools: Sequence[Spooled], executor: Executor) -> Counter[str]:
    """Write ``data/<split>/<number>.parquet`` of every shard; returns what became of times, as `settled` counts it."""
    jobs = []
    for index, (split, number) in enumerate(plan.pieces):
        places = tuple((s.path, tuple(s.places[index]), s.role) for s in spools if index in s.places)
        path = output / "data" / split / f"{number}.parquet"
        jobs.append(ShardJob(path, places))
    moved: Counter[str] = Counter()
    for counts in track(executor.map(write_shard, jobs), "write", len(jobs), "shards"):
        moved.update(counts)
    return moved


def write_shard(job: ShardJob) -> Counter[str]:
    """Sort the rows of a shard by subject and time (static ones first) and write them; see `settled` for the counts."""
    parts = [pl.DataFrame(schema={**EVENTS, "role": pl.String})]
    for path, numbers, role in job.places:
        with pa.OSFile(str(path)) as source:
            reader = pa.ipc.open_file(source)
            rows = pl.from_arrow(pa.Table.from_batches([reader.get_batch(number) for number in numbers]))
        assert isinstance(rows, pl.DataFrame)
        rows = rows.unique(maintain_order=True) if role == "once" else rows
        parts.append(rows.with_columns(pl.lit(role).alias("role")))
    events, moved = settled(pl.concat(parts))
    events = events.sort("subject_id", "time", nulls_last=False, maintain_order=True)
    write_events(job.path, events.select(SCHEMA.names))
    return moved


def write_events(path: Path, events: pl.DataFrame) -> None:
    """Write a shard whose columns are among those of `SCHEMA`, of the types that MEDS asks for."""
    schema = pa.schema([SCHEMA.field(name) for name in events.columns])
    write_table(path, events.to_arrow().cast(schema), "zstd")


def _gather_book(spools: Sequence[Spooled]) -> pl.DataFrame:
    """All codes of the tables, as `BOOK`."""
    return pl.concat([pl.DataFrame(schema=BOOK), *(spooled.book for spooled in spools)])


def write_metadata(
    output: Path, subject_ids: ArrayLike, split_names: ArrayLike, book: pl.DataFrame, facts: Mapping[str, Any]
) -> None:
    """Write dataset.json with these facts, codes.parquet from a `BOOK`, and subject_splits.parquet."""
    folder = output / "metadata"
    folder.mkdir(exist_ok=True)
    codes = book.select("code", "description", pl.concat_list("parent").alias("parent_codes"))
    codes = codes.with_columns(pl.when(book["parent"].is_not_null()).then("parent_codes"))
    write_table(folder / "codes.parquet", codes.to_arrow().cast(BOOK_SCHEMA))
    splits = {"subject_id": pa.array(subject_ids, pa.int64()), "split": pa.array(split_names, pa.string())}
    write_table(folder / "subject_splits.parquet", pa.table(splits))
    write_json(folder / "dataset.json", {"meds_version": MEDS_VERSION, "code_modifier_columns": ["unit"], **facts})
