"""Breaks against numpy, and the published bins of each quantizer."""

import numpy as np
import pytest
from ehr_core.errors import ConfigError
from ehr_fms.quantizers import LABELS, around, check_ranges, fit_breaks, quantiles, reachable, read_ranges, sigmas
from ehr_tokenize.fit.quantiles import Counts
from hypothesis import given, settings
from hypothesis import strategies as st


def counts(**values):
    lengths = [len(v) for v in values.values()]
    flat = np.concatenate([np.sort(np.array(v, np.float32)) for v in values.values()])
    return Counts(list(values), np.array(lengths), np.concatenate([[0], np.cumsum(lengths)]), flat)


def bins(breaks, numbers):
    return np.digitize(numbers, breaks).tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.sampled_from([10, 20, 100]))
def test_quantiles_are_those_of_numpy(values, size):
    value = np.sort(np.array(values, np.float32))
    expected = np.nanquantile(value.astype(np.float64), np.arange(1, size) / size)
    assert quantiles(value, size) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_a_break_that_is_a_number_is_exactly_that_number():
    assert quantiles(np.arange(11, dtype=np.float32), 10).tolist() == list(range(1, 10))


def test_there_are_as_many_bins_as_published():
    assert {name: len(labels) for name, labels in LABELS.items()} == {
        "deciles": 10, "ventiles": 20, "centiles": 100, "sigmas": 8
    }  # fmt: skip
    assert LABELS["centiles"][99] == "Q99"


def test_sigmas_lie_around_the_mean():
    value = np.array([-1.0, 1.0], np.float32)  # mean 0, deviation 1
    labels = [LABELS["sigmas"][k] for k in bins(sigmas(value), [-9, -3, -2, -1, -0.1, 0, 0.9, 1, 2, 3, 9])]
    assert labels == ["Q3-", "Q2-", "Q1-", "Q0-", "Q0-", "Q0+", "Q0+", "Q1+", "Q2+", "Q3+", "Q3+"]


def test_numbers_that_are_all_the_same_are_neither_high_nor_low():
    breaks = sigmas(np.full(5, 0.1, np.float32))
    value = float(np.float32(0.1))
    assert [LABELS["sigmas"][k] for k in bins(breaks, [value - 1, value, value + 1])] == ["Q3-", "Q0+", "Q3+"]


def test_reference_ranges_have_five_bins_below_ten_within_and_five_above():
    value = np.arange(100, dtype=np.float32)
    breaks = around(value, 20.0, 59.0)
    assert len(breaks) == 19
    found = bins(breaks, value)
    assert [found[int(v)] for v in (0, 19, 20, 59, 60, 99)] == [0, 4, 5, 14, 15, 19]  # both ends are within
    assert np.bincount(found).tolist() == [4] * 5 + [4] * 10 + [8] * 5


def test_a_range_with_one_limit_has_no_bins_beyond_the_other():
    value = np.arange(100, dtype=np.float32)
    assert set(bins(around(value, None, 49.0), value)) == set(range(5, 20))
    assert set(bins(around(value, 50.0, None), value)) == set(range(15))


def test_what_train_has_not_seen_beyond_a_limit_is_in_the_outermost_bin():
    breaks = around(np.arange(50, 60, dtype=np.float32), 40.0, 70.0)
    assert bins(breaks, [30, 55, 80]) == [0, 10, 19]


def test_few_distinct_numbers_have_a_bin_each_when_that_is_asked_for():
    found = fit_breaks(counts(A=[1, 2, 2, 15], B=range(11)), "deciles", True, {})
    assert found["A"] == [2.0, 15.0]
    assert bins(found["A"], [1, 2, 15]) == [0, 1, 2]
    assert found["B"] == list(range(1, 10))  # eleven numbers for ten bins: quantiles
    assert fit_breaks(counts(A=[1, 2, 2, 15]), "deciles", False, {})["A"][0] == pytest.approx(1.3)


def test_equal_breaks_stay_and_leave_bins_that_cannot_occur():
    found = fit_breaks(counts(A=[0] * 8 + [1, 2]), "deciles", False, {})["A"]
    assert len(found) == 9
    assert reachable(found) == [0, 7, 8, 9]
    assert set(bins(found, [-1, 0, 1, 2])) <= set(reachable(found))


def test_ranges_are_read_from_csv_with_open_ends(tmp_path):
    file = tmp_path / "ranges.csv"
    file.write_text("token,lower,upper\nLAB_K,3.5,5\nLAB_CRP,,10\n")
    assert read_ranges(file) == {"LAB_K": (3.5, 5.0), "LAB_CRP": (None, 10.0)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token,lower\nA,1\n", "has no column upper"),
        ("token,lower,upper\nA,1,2\nB,low,2\n", "row 2: a limit is no number"),
        ("token,lower,upper\nA,3,2\n", "row 1: lower is above upper"),
        ("token,lower,upper\nA,1,inf\n", "row 1: a limit is not finite"),
        ("token,lower,upper\nA,1,2\nA,1,2\n", "row 2: 'A' has a range above"),
    ],
)
def test_a_ranges_file_that_is_wrong_is_named_with_the_row(tmp_path, text, message):
    file = tmp_path / "ranges.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_ranges(file)
    with pytest.raises(ConfigError, match="is missing"):
        read_ranges(tmp_path / "none.csv")


def test_ranges_that_name_no_token_at_all_are_refused():
    check_ranges({"LAB_K": 1, "LAB_ELSE": 1}, ["LAB_K"])
    with pytest.raises(ConfigError, match=r"none of its tokens .* nearest to 'LAB_k' is 'LAB_K'"):
        check_ranges({"LAB_k": 1}, ["LAB_K", "NOTE"])
