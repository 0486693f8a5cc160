"""Checks that every component of a kind must pass: plain functions of (kind, component, scratch folder).

They raise AssertionError with what is wrong. `checks_of` lists those of a kind; `ehr_core.testing.pytest_plugin` runs
them. Those that need torch are in `ehr_core.testing.torch_checks`, those of tokenizers on random records in
`ehr_core.testing.tokenizer_checks`.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from ehr_core.component import MISSING, Component
from ehr_core.constants import SPLITS
from ehr_core.errors import EhrError, NotApplicable
from ehr_core.formats.folder import file_digests
from ehr_core.formats.tables import LABEL_SCHEMA
from ehr_core.formats.vocabulary import UNK, Vocabulary
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build, registry
from ehr_core.testing.tiny import SUBJECTS, subject_rows, write_events, write_tiny_meds

Check = Callable[[str, Component, Path], None]
HEAVY = ("torch", "transformers", "polars", "sklearn", "xgboost", "mlflow", "scipy", "pandas", "matplotlib")


def small_settings(component: Component, **values: Any) -> Any:
    """Default settings, made small where fields for size exist, with required paths filled from ``values``."""
    assert component.config is not None, "this kind needs a dataclass of settings (Component.config)"
    wishes = {"num_subjects": 30, "num_workers": 2, **values}
    names = {f.name for f in dataclasses.fields(component.config)}
    settings: Any = component.config(**{name: value for name, value in wishes.items() if name in names})
    missing = [f.name for f in dataclasses.fields(settings) if getattr(settings, f.name) == MISSING]
    if missing:
        raise NotApplicable(f"{component.name} needs {', '.join(missing)}, which a general check cannot know")
    return settings


# -- every kind


def check_import_is_light(kind: str, component: Component, folder: Path) -> None:
    """Importing the plugin's module loads none of the heavy libraries."""
    module = registry().origin[kind, component.name].module
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = done.stdout.strip()
    assert heavy == "[]", f"importing {module} imported {heavy}; import that behind the target"


def check_target_loads(kind: str, component: Component, folder: Path) -> None:
    """The target can be imported, and the summary says something."""
    assert callable(component.load()), f"{component.target} is not callable"
    assert component.summary.strip(), "a component needs a summary of one line"
    assert "\n" not in component.summary, "the summary is one line"


def check_settings(kind: str, component: Component, folder: Path) -> None:
    """Settings build with no arguments, carry the component's name, and are plain data."""
    if component.config is None:
        return
    assert dataclasses.is_dataclass(component.config), "settings are a dataclass"
    container = OmegaConf.structured(component.config)
    if kind != "command":
        assert container.get("name") == component.name, f"settings need a field name: str = {component.name!r}"
    assert component.config.__doc__, "the settings class needs a docstring"


# -- records


def check_source_writes_meds(kind: str, component: Component, folder: Path) -> None:
    """What the source provides has the MEDS columns and splits, sorted, and is the same twice."""
    import polars as pl

    executor = build("executor", SerialConfig())
    digests = []
    for attempt in ("first", "second"):
        settings = small_settings(component, path=str(_tiny(folder)))
        output = folder / attempt
        output.mkdir()
        meds = component.load()(settings).provide(output, executor)
        digests.append(file_digests(meds))
        for split in SPLITS:
            files = sorted((meds / "data" / split).glob("*.parquet"))
            assert files, f"no shard in data/{split}"
            for file in files:
                events = pl.read_parquet(file)
                assert {"subject_id", "time", "code", "numeric_value"} <= set(events.columns), f"columns of {file.name}"
                keys = events.select("subject_id", "time")
                order = keys.sort("subject_id", "time", nulls_last=False, maintain_order=True)
                assert keys.equals(order), f"{file.name} is not sorted by subject and time"
    assert digests[0] == digests[1], "the same settings gave different files"


def _tiny(folder: Path) -> Path:
    meds = folder / "tiny"
    return meds if meds.exists() else write_tiny_meds(meds)


def _read(path: Path) -> Any:
    import polars as pl

    return pl.read_parquet(path)


def _fitted(component: Component, folder: Path, reverse: bool = False) -> Any:
    tokenizer = component.load()(small_settings(component))
    shards = sorted((_tiny(folder) / "data" / "train").glob("*.parquet"))
    tokenizer.fit([tokenizer.summarize(_read(shard)) for shard in (reversed(shards) if reverse else shards)])
    return tokenizer


def _same_tables(one: Any, two: Any) -> None:
    for name, array in one.arrays().items():
        assert np.array_equal(array, two.arrays()[name], equal_nan=array.dtype.kind == "f"), f"{name} differs"


def check_tokenizer_survives_saving(kind: str, component: Component, folder: Path) -> None:
    """Saved and loaded, a tokenizer encodes as before."""
    tokenizer = _fitted(component, folder)
    state = folder / "state"
    state.mkdir()
    tokenizer.save(state)
    again = component.load()(small_settings(component))
    again.load(state)
    assert Vocabulary.load(state).digest == tokenizer.vocabulary.digest
    events = _read(_tiny(folder) / "data" / "held_out" / "0.parquet")
    _same_tables(tokenizer.encode(events), again.encode(events))


def check_tokenizer_ignores_shard_order(kind: str, component: Component, folder: Path) -> None:
    """The order of the train shards does not change what is fitted."""
    one, two = _fitted(component, folder), _fitted(component, folder, reverse=True)
    assert one.vocabulary.tokens == two.vocabulary.tokens
    events = _read(_tiny(folder) / "data" / "tuning" / "0.parquet")
    _same_tables(one.encode(events), two.encode(events))


def check_tokenizer_does_not_look_ahead(kind: str, component: Component, folder: Path) -> None:
    """Tokens up to a time are the same whether or not later events exist."""
    import polars as pl

    tokenizer = _fitted(component, folder)
    subject = SUBJECTS["held_out"][0]
    events = _read(_tiny(folder) / "data" / "held_out" / "0.parquet").filter(pl.col("subject_id") == subject)
    whole = tokenizer.encode(events)
    times = sorted(set(events["time"].drop_nulls().to_list()))
    for cut in times[1::4]:
        part = tokenizer.encode(events.filter(pl.col("time").is_null() | (pl.col("time") <= cut)))
        limit = int(np.datetime64(cut, "us").astype(np.int64))
        seen, alone = whole.token[whole.time <= limit], part.token[part.time <= limit]
        assert np.array_equal(seen, alone), f"tokens up to {cut} change when later events are known"


def check_tokenizer_marks_unseen_codes(kind: str, component: Component, folder: Path) -> None:
    """A code that the train split lacks becomes UNK, whatever its value."""
    tokenizer = _fitted(component, folder)
    rows = subject_rows(201)
    last = rows[-1]
    rows.append((201, last[1], "LAB//never seen before//mmol/L", 4.2))
    write_events(folder / "unseen.parquet", rows)
    table = tokenizer.encode(_read(folder / "unseen.parquet"))
    assert UNK in table.token.tolist(), "an unseen code left no UNK"
    assert int(table.token.max()) < len(tokenizer.vocabulary), "a token id is outside the vocabulary"


def check_embedding_shape(kind: str, component: Component, folder: Path) -> None:
    """One finite float32 row a token, and an origin for each."""
    from ehr_core.formats.vocabulary import Token

    vocabulary = Vocabulary.build([Token(f"CODE//{i}", "code", (f"CODE//{i}",), 10 - i) for i in range(5)])
    table = component.load()(small_settings(component)).embed(vocabulary, None)
    assert table.vector_VD.dtype == np.float32
    assert table.vector_VD.shape[0] == len(vocabulary) == len(table.origin_V)
    assert np.isfinite(table.vector_VD).all()


# -- labels, scores


def check_task_labels(kind: str, component: Component, folder: Path) -> None:
    """Labels have the MEDS columns, lie inside the records, and are the same twice."""
    import polars as pl

    task = component.load()(small_settings(component))
    events = _read(_tiny(folder) / "data" / "train" / "0.parquet")
    end = events["time"].max()
    labels = task.label(events, end)
    assert set(LABEL_SCHEMA.names) <= set(labels.columns), f"labels have columns {labels.columns}"
    assert labels.equals(task.label(events, end)), "labels differ between two calls"
    spans = events.group_by("subject_id").agg(pl.col("time").min().alias("low"), pl.col("time").max().alias("high"))
    joined = labels.join(spans, on="subject_id", how="left")
    assert joined["low"].null_count() == 0, "a label is for a subject that has no events"
    assert joined.filter(pl.col("prediction_time") > end).is_empty(), "a prediction time lies after the end of the data"
    outcome = task.outcome()
    assert outcome.positive, "an outcome needs at least one positive code"


def check_baseline(kind: str, component: Component, folder: Path) -> None:
    """Probabilities in [0, 1], better than chance on an easy question, the same twice, missing values allowed."""
    random = np.random.default_rng(0)
    features = random.normal(size=(300, 6)).astype(np.float32)
    labels = (features[:, 0] + 0.3 * random.normal(size=300) > 0).astype(np.float64)
    features[random.random(features.shape) < 0.1] = np.nan
    found = []
    for _ in range(2):
        estimator = component.load()(small_settings(component))
        estimator.fit(features[:200], labels[:200], features[200:250], labels[200:250])
        found.append(np.asarray(estimator.predict_proba(features[250:])))
    assert found[0].shape == (50,)
    assert np.array_equal(found[0], found[1]), "the same seed gave other predictions"
    assert found[0].min() >= 0
    assert found[0].max() <= 1
    positive = labels[250:] == 1
    assert found[0][positive].mean() > found[0][~positive].mean() + 0.1, "it did not learn an easy rule"


def check_metric(kind: str, component: Component, folder: Path) -> None:
    """A perfect prediction beats a useless one in the metric's direction, and one class alone gives NaN or a number."""
    metric = component.load()(small_settings(component))
    label = np.array([0.0, 0.0, 1.0, 1.0])
    good, bad = metric(label, np.array([0.1, 0.2, 0.8, 0.9])), metric(label, np.array([0.9, 0.8, 0.2, 0.1]))
    assert (good > bad) == metric.higher_is_better
    alone = metric(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert isinstance(float(alone), float)


# -- around


def _double(value: int) -> int:
    return 2 * value


def _fail(value: int) -> int:
    raise EhrError(f"item {value} is bad")


def check_executor(kind: str, component: Component, folder: Path) -> None:
    """Results keep the order of the items, no items give no results, and an error comes out."""
    executor = component.load()(small_settings(component))
    assert list(executor.map(_double, [3, 1, 2])) == [6, 2, 4]
    assert list(executor.map(_double, [])) == []
    lost = True
    try:
        list(executor.map(_fail, [7]))
    except EhrError as error:
        lost = "7" not in str(error)
    assert not lost, "an error in a piece of work was lost"


def check_tracker(kind: str, component: Component, folder: Path) -> None:
    """NaN may be logged and finishing twice is fine."""
    tracker = component.load()(small_settings(component))
    tracker.start(folder, {"seed": 1}, 0)
    tracker.log(0, {"loss": 1.0})
    tracker.log(1, {"loss": float("nan")})
    tracker.finish("finished")
    tracker.finish("finished")


def check_command_composes(kind: str, component: Component, folder: Path) -> None:
    """The command's settings compose and its help can be shown."""
    from ehr_core import config

    if component.config is not None:
        assert component.name in config.describe(component.name) or config.describe(component.name)


def checks_of(kind: str) -> list[Check]:
    """The checks of a kind, the general ones first."""
    general: list[Check] = [check_import_is_light, check_target_loads, check_settings]
    if kind in ("model", "objective"):
        from ehr_core.testing.torch_checks import TORCH_CHECKS

        return general + TORCH_CHECKS[kind]
    if kind == "tokenizer":
        from ehr_core.testing.tokenizer_checks import PROPERTIES

        return general + CHECKS[kind] + PROPERTIES
    return general + CHECKS.get(kind, [])


CHECKS: dict[str, list[Check]] = {
    "source": [check_source_writes_meds],
    "tokenizer": [
        check_tokenizer_survives_saving,
        check_tokenizer_ignores_shard_order,
        check_tokenizer_does_not_look_ahead,
        check_tokenizer_marks_unseen_codes,
    ],
    "embedding": [check_embedding_shape],
    "task": [check_task_labels],
    "baseline": [check_baseline],
    "metric": [check_metric],
    "executor": [check_executor],
    "tracker": [check_tracker],
    "command": [check_command_composes],
}
