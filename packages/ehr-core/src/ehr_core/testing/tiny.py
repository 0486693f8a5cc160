"""Small worlds for tests: a MEDS dataset that fits on a page, and a grammar that a small model can learn."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ehr_core.formats.parquet import write_table

SUBJECTS = {"train": range(1, 17), "tuning": range(101, 105), "held_out": range(201, 205)}
SMALL_MODEL = {"num_layers": 2, "num_heads": 4, "width": 32, "mlp_width": 64, "context_length": 64, "dropout": 0.1}
"""Settings of models that are made small, where they have fields of these names."""
MEDS_SCHEMA = pa.schema(
    [("subject_id", pa.int64()), ("time", pa.timestamp("us")), ("code", pa.string()), ("numeric_value", pa.float32())]
)


def subject_rows(subject: int) -> list[tuple[int, datetime | None, str, float | None]]:
    """Events of one subject: statics, birth, two or three stays with drugs and labs; every fourth subject dies."""
    random = np.random.default_rng(subject)
    rows: list[tuple[int, datetime | None, str, float | None]] = [
        (subject, None, f"GENDER//{'F' if subject % 2 else 'M'}", None),
        (subject, None, "HEIGHT", float(150 + subject % 40)),
    ]
    birth = datetime(1940 + subject % 50, 1 + subject % 12, 1)
    rows.append((subject, birth, "MEDS_BIRTH", None))
    now = datetime(2015, 1, 1) + timedelta(days=int(random.integers(0, 300)))
    stays = 2 + subject % 2
    for stay in range(stays):
        rows.append((subject, now, "HOSPITAL_ADMISSION//EMERGENCY", None))
        rows.append((subject, now, f"DIAGNOSIS//ICD10CM//I{10 + int(random.integers(0, 5))}", None))
        for _ in range(3):
            now += timedelta(minutes=int(random.integers(1, 900)))
            rows.append((subject, now, "LAB//glucose//mg/dL", float(np.float32(random.normal(110, 20)))))
            rows.append((subject, now, "LAB//lactate//mmol/L", None if random.random() < 0.3 else 1.5))
        now += timedelta(days=2)
        if subject % 4 == 0 and stay == stays - 1:
            rows.append((subject, now, "MEDS_DEATH", None))
        else:
            rows.append((subject, now, "HOSPITAL_DISCHARGE//HOME", None))
        now += timedelta(days=int(random.integers(5, 400)))
    return rows


def write_events(path: Path, rows: list[tuple[Any, ...]]) -> None:
    """Write rows (subject_id, time, code, numeric_value) as one MEDS shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, MEDS_SCHEMA, strict=True)]
    write_table(path, pa.Table.from_arrays(arrays, schema=MEDS_SCHEMA))


def write_tiny_meds(folder: Path) -> Path:
    """A valid MEDS dataset of 24 subjects in two train shards, one tuning and one held-out shard."""
    for split, subjects in SUBJECTS.items():
        shards = [list(subjects)[:8], list(subjects)[8:]] if split == "train" else [list(subjects)]
        for number, shard in enumerate(shards):
            write_events(folder / "data" / split / f"{number}.parquet", [r for s in shard for r in subject_rows(s)])
    metadata = folder / "metadata"
    metadata.mkdir()
    pairs = [(subject, split) for split, subjects in SUBJECTS.items() for subject in subjects]
    splits = pa.table({"subject_id": pa.array([s for s, _ in pairs], pa.int64()), "split": [p for _, p in pairs]})
    write_table(metadata / "subject_splits.parquet", splits)
    codes = sorted({code for subject, _ in pairs for _, _, code, _ in subject_rows(subject)})
    empty = pa.array([None] * len(codes), pa.string())
    parents = pa.array([None] * len(codes), pa.list_(pa.string()))
    write_table(metadata / "codes.parquet", pa.table({"code": codes, "description": empty, "parent_codes": parents}))
    facts = {"dataset_name": "tiny", "dataset_version": "1", "meds_version": "0.4.1"}
    (metadata / "dataset.json").write_text(json.dumps(facts))
    return folder


def grammar(rows: int, length: int, vocabulary_size: int, seed: int = 0) -> np.ndarray:
    """Sentences (rows, length) int64 of a grammar in which each token but the first decides the next.

    A walk over ids 7, 8, ...: the next id is a fixed permutation of the present one, so a model that has learnt the
    rule reaches a loss of zero from the second token on.
    """
    random = np.random.default_rng(seed)
    follower = np.random.default_rng(1234).permutation(vocabulary_size - 7) + 7
    sentences = np.empty((rows, length), np.int64)
    sentences[:, 0] = random.integers(7, vocabulary_size, rows)
    for place in range(1, length):
        sentences[:, place] = follower[sentences[:, place - 1] - 7]
    return sentences


def tiny_columns(position: np.ndarray) -> dict[str, np.ndarray]:
    """Columns that tokenizers of the workbench write, as int64 like ``position``: places within a window."""
    return {
        "age_days": 20_000 + 400 * position,
        "visit": position // 3,
        "segment": position // 3 % 2,
        "entity": position % 4,
        "sex": np.ones_like(position),
        "region": np.full_like(position, 3),
    }
