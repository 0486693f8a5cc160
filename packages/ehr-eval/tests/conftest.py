"""Small worlds: events written row by row, and parts of a plugin that lives for one test."""

import importlib.machinery
import importlib.util
import sys
import types
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ehr_core.config
import ehr_core.plugin
import ehr_core.plugins
import ehr_eval.plugin
import numpy as np
import polars as pl
import pytest
from ehr_core import Component, NotApplicable, hookimpl
from ehr_core.constants import SPLITS
from ehr_core.formats.folder import Manifest, read_json, write_json, write_manifest
from ehr_core.formats.labels import read_labels
from ehr_core.formats.tokens import PREFIX, Prefix
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.outcomes import BINARY, KINDS
from ehr_core.plugin import MedsConfig

SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
START = datetime(2020, 1, 1)


def day(number):
    return None if number is None else START + timedelta(days=number)


def frame(rows):
    """Events from rows (subject, day or None, code[, value])."""
    found = pl.DataFrame([(s, day(t), c, *(v or (None,))) for s, t, c, *v in rows], SCHEMA, orient="row")
    return found.sort("subject_id", "time", nulls_last=False, maintain_order=True)


def write_meds(folder: Path, **splits) -> Path:
    """A dataset with, per split, a list of shards, each a frame of events; a split without any has one of no rows."""
    for split in SPLITS:
        for number, events in enumerate(splits.get(split, [frame([])])):
            path = folder / "data" / split / f"{number}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            events.write_parquet(path)
    return folder


def cohort(subjects, seed):
    """Stays of which the sick (high LAB//A) die, twice in ten without that reason; about a third come back."""
    rng = np.random.default_rng(seed)
    rows = []
    for subject in subjects:
        rows.append((subject, None, f"GENDER//{'FM'[subject % 2]}"))
        rows.append((subject, -365.25 * rng.integers(20, 90), "MEDS_BIRTH"))
        start = float(rng.integers(0, 20))
        for _ in range(1 + rng.integers(2)):
            sick = rng.random() < 0.35
            rows.append((subject, start, "HOSPITAL_ADMISSION//ER"))
            rows += [(subject, start + h / 24, "LAB//A", rng.normal(3.0 * sick, 1.0)) for h in range(1, 6)]
            rows += [(subject, start + h / 24, f"NOTE//{rng.integers(4)}") for h in range(1, 4)]
            if rng.random() < (0.8 if sick else 0.05):
                rows.append((subject, start + 3, "MEDS_DEATH"))
                break
            rows.append((subject, start + 4, "HOSPITAL_DISCHARGE//HOME"))
            start += 4 + float(rng.integers(5, 60))
    rows.append((subjects[0], 400.0, "CLINIC"))
    return frame(rows)


@dataclass
class PredictorConfig:
    """Answers with one number."""

    name: str = "steady"
    answer: float = 0.5
    lose_rows: bool = False
    no_number: bool = False
    dies: bool = False
    resumes: bool = False


class Steady:
    needs_run = False

    def __init__(self, settings):
        self.settings = settings

    def fit(self, job):
        (job.work / "begun").touch()
        if self.settings.dies:
            raise RuntimeError("killed")
        assert not self.settings.resumes or (job.work / "earlier").is_file()
        write_json(job.output / "answer.json", self.settings.answer)

    def predict(self, job):
        labels = read_labels(job.labels)
        lost = int(self.settings.lose_rows)
        answer = np.nan if self.settings.no_number else read_json(job.fitted / "answer.json")
        return {split: np.full(len(labels.tables[split]) - lost, answer) for split in job.splits}

    def tokenizer(self, fitted):
        return None


@dataclass
class RunPredictorConfig:
    """Wants a run."""

    name: str = "hungry"


class Hungry(Steady):
    needs_run = True

    def __init__(self, settings):
        super().__init__(PredictorConfig())

    def fit(self, job):
        assert (job.run / "manifest.json").is_file()
        (job.output / "store.txt").write_text((job.store / "made.txt").read_text())
        super().fit(job)

    def tokenizer(self, fitted):
        return fitted / "tokenizer"


@dataclass
class TokenizeConfig:
    """Tokens are one text file here."""

    defaults: list = field(default_factory=lambda: [{"source": "meds"}, "_self_"])
    source: Any = "???"
    output: str = "???"
    fitted: str | None = None


def tokenize(settings):
    write_store(Path(settings.output), f"{Path(settings.source.path).name} {Path(settings.fitted).name}")


def write_store(folder, made, unknown=0):
    """A token store without tokens, which says how many of 100 events are unknown, and who ``made`` it."""
    folder.mkdir()
    (folder / "made.txt").write_text(made)
    vocabulary = Vocabulary.build([])
    vocabulary.save(folder)
    write_json(folder / PREFIX, asdict(Prefix()))
    coverage = {"all": {"events": {"events": 100, "unk_events": unknown}}}
    content = {"vocabulary": vocabulary.digest, "columns": [], "coverage": coverage}
    write_manifest(folder, Manifest("token-store", 1, [], {}, content=content))


@dataclass
class RefusingConfig:
    """Never applicable."""

    name: str = "refusing"
    reasons: list = field(default_factory=list)


class Refusing:
    needs_run = False

    def __init__(self, settings):
        pass

    def fit(self, job):
        raise NotApplicable("this cohort has no such code")


def _parts_module():
    spec = importlib.machinery.ModuleSpec("ehr_eval_test_parts", None)
    module = importlib.util.module_from_spec(spec)
    module.__dict__.update({part.__name__: part for part in (Steady, Hungry, Refusing, tokenize)})

    @hookimpl
    def ehr_predictors():
        yield Component(name="steady", target="ehr_eval_test_parts:Steady", config=PredictorConfig, outcomes=KINDS)
        yield Component(
            name="hungry", target="ehr_eval_test_parts:Hungry", config=RunPredictorConfig, outcomes=(BINARY,)
        )
        yield Component(name="refusing", target="ehr_eval_test_parts:Refusing", config=RefusingConfig, outcomes=KINDS)

    @hookimpl
    def ehr_commands():
        yield Component(name="tokenize", target="ehr_eval_test_parts:tokenize", config=TokenizeConfig)

    module.ehr_predictors, module.ehr_commands = ehr_predictors, ehr_commands
    return module


@pytest.fixture
def parts(monkeypatch):
    """Only ehr-core, ehr-eval and the parts above are installed; whatever else the environment has is unseen."""
    module = _parts_module()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = ehr_core.plugins.discover({"core": ehr_core.plugin, "eval": ehr_eval.plugin, "parts": module})
    monkeypatch.setattr(ehr_core.plugins, "registry", lambda: found)
    monkeypatch.setattr(ehr_core.config, "registry", lambda: found)
    return types.SimpleNamespace(
        source=MedsConfig,
        steady=PredictorConfig,
        hungry=RunPredictorConfig,
        refusing=RefusingConfig,
    )


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "logs").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    Vocabulary.build([]).save(folder / "tokenizer")
    history = [{"step": s, "loss": 3.0 / s, "tuning_loss": 4.0 / s, "speed": s} for s in range(1, 9)]
    del history[1]["tuning_loss"]
    write_json(folder / "logs" / "metrics_history.json", history)
    settings = {"model": {"name": "tiny"}, "objective": {"name": "next_token"}}
    write_manifest(folder, Manifest("run", 1, ["ehr-train==0.1.0"], settings))
    return folder


@pytest.fixture
def tiny(tmp_path):
    """A dataset of 260 subjects in two train shards, tuning and held_out."""
    return write_meds(
        tmp_path / "meds",
        train=[cohort(range(1, 90), 1), cohort(range(90, 180), 2)],
        tuning=[cohort(range(180, 220), 3)],
        held_out=[cohort(range(220, 261), 4)],
    )


@pytest.fixture
def token_store():
    """`write_store`."""
    return write_store


@pytest.fixture
def events():
    """`frame`, for tests that write their events row by row."""
    return frame


@pytest.fixture
def patients():
    """`cohort`."""
    return cohort


@pytest.fixture
def dataset():
    """`write_meds`."""
    return write_meds


@pytest.fixture
def at():
    """`day`: the time of a day number."""
    return day
