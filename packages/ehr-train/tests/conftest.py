import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from ehr_core.formats.labels import write_labels
from ehr_core.plugins import registry
from ehr_train.job import TrainJob
from ehr_train.settings import JsonlConfig, TrainConfig

from .world import cohort, label_of, write_store


@pytest.fixture(scope="package", autouse=True)
def tiny(tmp_path_factory):
    """Install the tests' own plugin where this process and its children find it."""
    place = tmp_path_factory.mktemp("site")
    shutil.copyfile(Path(__file__).parent / "tiny.py", place / "ehr_train_tiny.py")
    info = place / "ehr_train_tiny-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ehr-train-tiny\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[ehr]\ntrain_tiny = ehr_train_tiny\n")
    sys.path.insert(0, str(place))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(place), before]))
    registry.cache_clear()
    import ehr_train_tiny

    yield ehr_train_tiny
    sys.path.remove(str(place))
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    registry.cache_clear()


@pytest.fixture(scope="package")
def store(tmp_path_factory) -> Path:
    """120 training subjects in two shards, 30 for tuning, 30 held out."""
    splits = {
        "train": [cohort(1000, 70, 1), cohort(2000, 50, 2)],
        "tuning": [cohort(3000, 30, 3)],
        "held_out": [cohort(4000, 30, 4)],
    }
    return write_store(tmp_path_factory.mktemp("data") / "store", splits)


@pytest.fixture(scope="package")
def labels(tmp_path_factory) -> Path:
    """For each subject of the store one label: whether the last visible code is A, B, C or D."""
    folder = tmp_path_factory.mktemp("labels")
    sets = {"train": cohort(1000, 70, 1) + cohort(2000, 50, 2), "tuning": cohort(3000, 30, 3)}
    sets["held_out"] = cohort(4000, 30, 4)
    for split, subjects in sets.items():
        rows = [label_of(subject) for subject in subjects]
        names = ("subject_id", "prediction_time", "boolean_value")
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        columns["prediction_time"] = pa.array(columns["prediction_time"], pa.timestamp("us"))
        write_labels(folder / f"{split}.parquet", pa.table(columns))
    return folder


@pytest.fixture
def job(tiny, store, tmp_path):
    """Twelve steps of a small model, with dropout."""
    return TrainJob(
        store=str(store),
        output=str(tmp_path / "run"),
        model=tiny.TinyConfig(dropout=0.2),
        objective=tiny.TinyNextConfig(),
        trackers={"jsonl": JsonlConfig()},
        train=TrainConfig(batch_size=8, max_steps=12, log_every=2, eval_every=4, learning_rate=3e-3),
        seed=5,
    )
