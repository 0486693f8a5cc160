"""Trajectories in a folder: written as they come, and gone on with after a kill.

FOLDER/generation.json    what decides the trajectories: settings, vocabulary, intervals, weights
FOLDER/part-N.parquet     subject_id, prediction_time, draw, tokens, stop_reason, elapsed_seconds; whole prompts only
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from ehr_core.errors import FormatError
from ehr_core.formats.folder import digest_of, read_json, write_json
from ehr_core.formats.tables import read_table

from ehr_models.digest import weights_digest
from ehr_models.generation.engine import Engine
from ehr_models.generation.rows import Prompt, Trajectory

SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("draw", pa.int32()),
        ("tokens", pa.list_(pa.int32())),
        ("stop_reason", pa.string()),
        ("elapsed_seconds", pa.float64()),
    ]
)
FACTS = "generation.json"
Key = tuple[int, int]


def generate_into(folder: Path, engine: Engine, prompts: Iterable[Prompt], part_rows: int = 4096) -> None:
    """Draw what the folder does not have yet of these prompts, at least ``part_rows`` trajectories a file.

    Raises FormatError when the folder was begun with other settings, another vocabulary or other weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, engine)
    done = finished(folder)
    waiting: dict[Key, list[Trajectory]] = {}
    full: list[Trajectory] = []
    for one in engine.generate(_left(prompts, done)):
        key = (one.subject_id, one.time)
        waiting.setdefault(key, []).append(one)
        if len(waiting[key]) == engine.settings.draws:
            full += sorted(waiting.pop(key), key=lambda found: found.draw)
        if len(full) >= part_rows:
            _write(folder, full)
            full = []
    if full:
        _write(folder, full)


def read(folder: Path) -> pa.Table:
    """All trajectories of a folder, ordered by subject, time and draw. Raises FormatError for a damaged file."""
    tables = [read_table(path).cast(SCHEMA) for path in parts(folder)]
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    return table.sort_by([(name, "ascending") for name in ("subject_id", "prediction_time", "draw")])


def parts(folder: Path) -> list[Path]:
    """Files with trajectories, in the order in which they were written."""
    return sorted(folder.glob("part-*.parquet"))


def finished(folder: Path) -> set[Key]:
    """Prompts, as (subject, microseconds), that have all their draws in the folder."""
    found: set[Key] = set()
    for path in parts(folder):
        table = read_table(path)
        time_N = table["prediction_time"].cast(pa.int64()).to_numpy()
        found.update(zip(table["subject_id"].to_pylist(), time_N.tolist(), strict=True))
    return found


def _left(prompts: Iterable[Prompt], done: set[Key]) -> Iterator[Prompt]:
    """Prompts that are not done, each once."""
    for prompt in prompts:
        key = (prompt.subject_id, prompt.time)
        if key not in done:
            done.add(key)
            yield prompt


def _write(folder: Path, found: list[Trajectory]) -> None:
    """Write one more file; it is there whole or not at all."""
    names = ("subject_id", "time", "draw", "tokens", "stop_reason", "seconds")
    columns = [[getattr(one, name) for one in found] for name in names]
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
    path = folder / f"part-{len(parts(folder)):06d}.parquet"
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def _claim(folder: Path, engine: Engine) -> None:
    """Say what the folder's trajectories are drawn from, or see that it is still the same."""
    settings = dataclasses.asdict(engine.settings)
    del settings["rows"]  # it decides nothing about the result
    facts = {
        "settings": settings,
        "vocabulary": engine.vocabulary.digest,
        "intervals": digest_of(engine.intervals),
        "weights": weights_digest(engine.model),
    }
    if not (folder / FACTS).exists():
        write_json(folder / FACTS, facts)
    elif (found := read_json(folder / FACTS)) != facts:
        other = sorted(name for name in facts if not isinstance(found, dict) or found.get(name) != facts[name])
        raise FormatError(
            f"{folder} was begun with other {', '.join(other)}; give another folder, or remove it to draw anew"
        )
