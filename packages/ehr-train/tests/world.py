"""Small token stores made by hand: subjects whose codes follow a noisy cycle."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from ehr_core.formats.folder import Manifest, write_json, write_manifest
from ehr_core.formats.intervals import Interval, Intervals
from ehr_core.formats.tokens import FORMAT, NO_TIME, VERSION, Prefix, TokenTable, write_prefix
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_train import checkpoint, launch
from ehr_train.job import running

DAY = 86_400_000_000
CODES = [Token(f"CODE//{letter}", "code", (f"CODE//{letter}",), 100) for letter in "ABCDEFGH"]
DEATH, HOME = Token("MEDS_DEATH", "code", ("MEDS_DEATH",)), Token("HOME", "code", ("DISCHARGE//HOME",))
INTERVALS = [Token("1d-10d", "interval"), Token("10d-40d", "interval"), Token("40d-", "interval")]
STATIC = [Token("SEX//?", "static"), Token("SEX//F", "static"), Token("SEX//M", "static")]
DIGITS = [Token(f"AGE//{n}", "age") for n in range(10)] + [Token("AGE//?", "age")]
END = Token("TIMELINE_END", "end")
VOCABULARY = Vocabulary.build([*CODES, DEATH, HOME, *INTERVALS, *STATIC, *DIGITS, END])
PREFIX = Prefix(
    slots=("SEX",),
    unknown=(VOCABULARY["SEX//?"],),
    tens=tuple(VOCABULARY[f"AGE//{n}"] for n in range(10)),
    units=tuple(VOCABULARY[f"AGE//{n}"] for n in range(10)),
    age_unknown=VOCABULARY["AGE//?"],
)


@dataclasses.dataclass
class Subject:
    id: int
    tokens: list[int]
    times: list[int]
    static: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """(token, time) of the only slot."""
    birth: int = NO_TIME


def table(subjects: list[Subject]) -> TokenTable:
    """A shard."""
    tokens = [token for s in subjects for token in s.tokens]
    static = [row for s in subjects for row in sorted(s.static, key=lambda row: row[1])]

    def offsets(parts):
        return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)

    return TokenTable(
        subject_id=np.array([s.id for s in subjects], np.int64),
        offset=offsets([s.tokens for s in subjects]),
        token=np.array(tokens, np.uint16),
        time=np.array([time for s in subjects for time in s.times], np.int64),
        birth=np.array([s.birth for s in subjects], np.int64),
        static_offset=offsets([s.static for s in subjects]),
        static_slot=np.zeros(len(static), np.uint16),
        static_token=np.array([token for token, _ in static], np.uint16),
        static_time=np.array([time for _, time in static], np.int64),
        columns={
            "number": np.arange(len(tokens), dtype=np.int32),
            "value": np.arange(len(tokens), dtype=np.float32) / 2,
        },
    )


def write_store(path: Path, splits: dict[str, list[list[Subject]]], prefix: Prefix = PREFIX) -> Path:
    """A token store: per split a list of shards, each a list of subjects."""
    path.mkdir(parents=True)
    VOCABULARY.save(path)
    write_prefix(path, prefix)
    days = {"1d-10d": (1, 10), "10d-40d": (10, 40), "40d-": (40, None)}
    Intervals({name: Interval(86_400.0 * lower, lower, upper) for name, (lower, upper) in days.items()}).save(path)
    write_json(path / "tokenizer.json", {"name": "by-hand", "settings": {}, "state": {}})
    for split, shards in splits.items():
        for number, subjects in enumerate(shards):
            table(subjects).write(path / split / f"{number}.safetensors")
    content = {"vocabulary": VOCABULARY.digest, "columns": ["number", "value"]}
    write_manifest(path, Manifest(FORMAT, VERSION, ["test==0"], {}, {}, content))
    return path


def cohort(first: int, count: int, seed: int, low: int = 3, high: int = 150) -> list[Subject]:
    """Subjects whose codes follow a noisy cycle: A B C ... H A, each step right with probability 0.8."""
    rng = np.random.default_rng(seed)
    subjects = []
    for number in range(count):
        length = int(rng.integers(low, high))
        place, tokens = int(rng.integers(8)), []
        for _ in range(length):
            tokens.append(7 + place)
            place = (place + 1) % 8 if rng.random() < 0.8 else int(rng.integers(8))
        start = int(rng.integers(10_000)) * DAY
        times = (start + np.sort(rng.integers(0, 2_000, length)) * DAY).tolist()
        sex = VOCABULARY["SEX//F"] if rng.random() < 0.5 else VOCABULARY["SEX//M"]
        birth = start - int(rng.integers(1, 80) * 365.25) * DAY
        subjects.append(Subject(first + number, tokens, times, [(sex, NO_TIME)], birth))
    return subjects


def label_of(subject: Subject) -> tuple[int, int, bool]:
    time = subject.times[len(subject.times) * 2 // 3]
    visible = [token for token, at in zip(subject.tokens, subject.times, strict=True) if at <= time]
    return subject.id, time, visible[-1] < 11


def weights(path, name="best_model"):
    return checkpoint.read(path / "checkpoints" / f"{name}.pt")


def same_weights(one, two, atol=0.0):
    assert one["model"].keys() == two["model"].keys()
    return all(torch.allclose(one["model"][k], two["model"][k], rtol=0, atol=atol) for k in one["model"])


def running_of(job):
    return running(Path(job.output))


def train(job, world_size="auto"):
    """Train; the run's folder."""
    return launch.train(job, world_size).path
