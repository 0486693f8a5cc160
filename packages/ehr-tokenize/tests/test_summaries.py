"""Summaries on disk: what is kept comes back, numbers stay in the file, and what cannot be kept is said so."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from ehr_core.errors import FormatError
from ehr_tokenize.fit import quantiles
from ehr_tokenize.fit.summaries import FileNumbers, keep, recall


@dataclass
class Inner:
    values: np.ndarray
    often: Counter[str]


@dataclass
class Outer:
    counts: quantiles.Counts
    inner: Inner
    spans: list[tuple[int, float]]
    names: tuple[str, ...]
    nested: dict[str, dict[int, bool]]
    distinct: set[str]
    maybe: Inner | None = None


def some() -> Outer:
    code, value = np.array([1, 0, 1, 1]), np.array([2.5, np.nan, 1.5, np.nan], np.float32)
    inner = Inner(np.array([1, 2], np.uint16), Counter({"x": 3}))
    counts = quantiles.tally(["B", "A"], code, value)
    return Outer(counts, inner, [(1, 0.1), (2, 1e300)], ("a", "b"), {"a//b": {1: True}}, {"y", "x"})


def test_a_summary_comes_back_as_it_was(tmp_path):
    keep(Outer, some(), tmp_path / "0.safetensors")
    found, expected = recall(Outer, tmp_path / "0.safetensors"), some()
    assert [p.name for p in tmp_path.iterdir()] == ["0.safetensors"]
    assert (found.spans, found.names, found.nested, found.maybe) == (expected.spans, ("a", "b"), expected.nested, None)
    assert found.distinct == {"x", "y"}
    assert found.inner.values.tolist() == [1, 2]
    assert found.inner.values.dtype == np.uint16
    assert found.inner.often == Counter({"x": 3})
    assert isinstance(found.inner.often, Counter)
    assert found.counts.names_C == ["A", "B"]
    assert found.counts.rows_C.tolist() == [3, 1]
    assert found.counts.offset_C.tolist() == [0, 2, 2]


def test_numbers_stay_in_the_file_until_a_slice_is_read(tmp_path):
    keep(Outer, some(), tmp_path / "0.safetensors")
    counts = recall(Outer, tmp_path / "0.safetensors").counts
    assert isinstance(counts.value, FileNumbers)
    assert counts.value[0:2].tolist() == [2.5, 1.5]
    assert counts.value[1:9].tolist() == [1.5]
    assert quantiles.quantile_breaks(quantiles.merge([counts, some().counts]), 2) == {"A": [2.0]}


@pytest.mark.parametrize("kind", [Any, dict, dict[str, bytes], list[Any], Outer | Inner])
def test_only_types_that_json_and_arrays_can_hold_are_kept(kind, tmp_path):
    with pytest.raises(AssertionError, match="cannot be kept"):
        keep(kind, {}, tmp_path / "0.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_summary_is_named(tmp_path):
    path = tmp_path / "0.safetensors"
    keep(Outer, some(), path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FormatError, match=r"0.safetensors is damaged"):
        recall(Outer, path)
