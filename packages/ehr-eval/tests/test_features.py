"""Features against a loop in plain Python, and against a changed future."""

import math
import os
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from ehr_core.errors import DataError
from ehr_core.formats.labels import read_labels
from ehr_eval import features
from ehr_eval.settings import FeaturesConfig

CODES = ["LAB//A", "LAB//B", "NOTE", "DRUG//X"]


def random_world(rng, subjects=25):
    rows = []
    for subject in range(1, subjects + 1):
        rows.append((subject, None, f"SEX//{'FM'[subject % 2]}"))
        rows.append((subject, None, "HEIGHT", float(rng.integers(150, 200))))
        if subject % 5:
            rows.append((subject, float(-rng.integers(10_000, 30_000)), "MEDS_BIRTH"))
        for _ in range(rng.integers(0, 30)):
            value = [float(rng.normal())] if rng.random() < 0.6 else []
            value = [math.nan] if rng.random() < 0.05 else value
            rows.append((subject, float(rng.integers(0, 20)), str(rng.choice(CODES)), *value))
    return rows


def by_hand(rows, subject, asked, code):
    """count, last, min, max, mean of one code, by going through the rows."""
    seen = [(t, v) for s, t, c, *v in rows if s == subject and c == code and (t is None or t <= asked)]
    numbers = [(t if t is not None else -math.inf, v[0]) for t, v in seen if v and math.isfinite(v[0])]
    values = [v for _, v in numbers]
    if not values:
        return len(seen), math.nan, math.nan, math.nan, math.nan
    last = [v for t, v in numbers if t == max(t for t, _ in numbers)][-1]
    return len(seen), last, min(values), max(values), sum(values) / len(values)


@pytest.fixture
def world(tmp_path, events, dataset, at):
    rng = np.random.default_rng(0)
    rows = random_world(rng)
    half = [[row for row in rows if row[0] <= 12], [row for row in rows if row[0] > 12]]
    meds = dataset(tmp_path / "meds", train=[events(part) for part in half])
    asked = [(int(s), float(t)) for s, t in zip(rng.integers(1, 26, 60), rng.integers(0, 20, 60), strict=True)]
    samples = pl.DataFrame({"subject_id": [s for s, _ in asked], "prediction_time": [at(t) for _, t in asked]})
    return rows, meds, asked, samples


def age_by_hand(born, when):
    """Birthdays, and the part of the way to the next one."""
    years = when.year - born.year - ((when.month, when.day) < (born.month, born.day))
    last, following = (born.replace(year=born.year + number) for number in (years, years + 1))
    return years + (when - last) / (following - last)


def test_features_equal_a_loop_over_events(world, at):
    rows, meds, asked, samples = world
    history = features.read_history(meds, "train", samples)
    columns = features.choose(history, FeaturesConfig(min_count=1))
    found = dict(zip(columns.names, features.matrix(history, columns).T, strict=True))
    assert set(columns.counted) == {*CODES, "SEX//F", "SEX//M", "HEIGHT"}
    assert columns.constant == ("HEIGHT",)
    assert len(found) == 1 + 7 + 4 * 4 + 1
    for index, (subject, when) in enumerate(asked):
        for code in columns.counted:
            count, *values = by_hand(rows, subject, when, code)
            assert found[f"{code}|count"][index] == count
            for name, value in zip(features.VALUES, values, strict=True):
                if f"{code}|{name}" in found:
                    assert found[f"{code}|{name}"][index] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True)
        born = [t for s, t, c, *_ in rows if s == subject and c == "MEDS_BIRTH"]
        age = age_by_hand(at(born[0]), at(when)) if born else math.nan
        assert found["age"][index] == pytest.approx(age, rel=1e-6, nan_ok=True)


def test_nothing_after_the_prediction_time_is_visible(world, tmp_path, events, dataset):
    rows, meds, asked, samples = world
    changed = []
    for subject, when, code, *value in rows:
        first = min((t for s, t in asked if s == subject), default=0.0)
        if when is None or when <= first:
            changed.append((subject, when, code, *value))
        else:
            changed.append((subject, when, "FUTURE//" + code, 1e9))
    earliest = samples.sort("prediction_time").unique("subject_id", keep="first", maintain_order=True)
    other = dataset(tmp_path / "other", train=[events(changed)])
    before, after = (features.read_history(folder, "train", earliest) for folder in (meds, other))
    columns = features.choose(before, FeaturesConfig(min_count=1))
    assert columns == features.choose(after, FeaturesConfig(min_count=1))
    np.testing.assert_array_equal(features.matrix(before, columns), features.matrix(after, columns))


def test_joining_in_small_pieces_changes_nothing(world, monkeypatch):
    _, meds, _, samples = world
    whole = features.read_history(meds, "train", samples)
    columns = features.choose(whole, FeaturesConfig(min_count=1))
    monkeypatch.setattr(features, "ROWS", 50)
    pieces = features.read_history(meds, "train", samples)
    np.testing.assert_array_equal(features.matrix(whole, columns), features.matrix(pieces, columns))


def test_codes_are_chosen_by_how_many_samples_see_them(world):
    _, meds, _, samples = world
    history = features.read_history(meds, "train", samples)
    seen = dict(history.table.group_by("code").len().rows())
    columns = features.choose(history, FeaturesConfig(min_count=max(seen[code] for code in CODES), max_codes=100))
    assert set(columns.counted) == {code for code, count in seen.items() if count >= max(seen[c] for c in CODES)}
    assert features.choose(history, FeaturesConfig(min_count=1, max_codes=1)).counted == ("HEIGHT",)


def test_a_code_that_train_never_saw_is_ignored(tmp_path, events, dataset, at):
    train = events([(1, 0, "A", 1.0), (2, 0, "A", 2.0)])
    other = events([(3, 0, "B", 5.0)])
    meds = dataset(tmp_path, train=[train], held_out=[other])
    ask = pl.DataFrame({"subject_id": [1, 2], "prediction_time": [at(1), at(1)]})
    columns = features.choose(features.read_history(meds, "train", ask), FeaturesConfig(min_count=1))
    ask = pl.DataFrame({"subject_id": [3], "prediction_time": [at(1)]})
    row = features.matrix(features.read_history(meds, "held_out", ask), columns)[0]
    assert dict(zip(columns.names, row, strict=True))["A|count"] == 0
    assert np.isnan(row[columns.names.index("A|mean")])


def test_labels_of_subjects_that_the_split_does_not_have_are_refused(world, at):
    _, meds, _, _ = world
    ask = pl.DataFrame({"subject_id": [1, 777], "prediction_time": [at(1), at(1)]})
    with pytest.raises(DataError, match=r"1 of 2 samples.*do not belong together") as caught:
        features.read_history(meds, "train", ask)
    assert "777" not in str(caught.value)


def test_real_records_take_seconds():
    root = os.environ.get("EHR_REAL_DATA")
    if not root:
        pytest.skip("EHR_REAL_DATA is not set")
    meds = Path(root) / "physionet2012_a"
    samples = pl.from_arrow(read_labels(meds / "labels" / "in_hospital_mortality").tables["train"])
    started = time.perf_counter()
    history = features.read_history(meds, "train", samples)
    columns = features.choose(history, FeaturesConfig())
    matrix = features.matrix(history, columns)
    assert time.perf_counter() - started < 20
    assert matrix.shape == (3231, len(columns.names))
    assert 180 < matrix.shape[1] < 240
