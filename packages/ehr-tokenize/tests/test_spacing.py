"""What tokens for time stand for in train: means and quartiles, however train is cut into shards."""

import numpy as np
import pytest
from ehr_tokenize.grammars.spacing import Once, Spacing, join, means, quartiles
from hypothesis import given, settings
from hypothesis import strategies as st

SECOND, HOUR, DAY = 1_000_000, 3_600_000_000, 86_400_000_000
BOUNDS = np.array([5 * 60 * SECOND, HOUR, DAY, 180 * DAY])
SPACING = Spacing(("5m", "1h", "1d", "6mt"), BOUNDS)
gaps = st.lists(st.one_of(st.integers(0, 3 * HOUR), st.integers(0, 900 * DAY), st.sampled_from(BOUNDS.tolist())))


def array(values):
    return np.array(values, np.int64)


def plain(spacing, found):
    """Per token the seconds that each one stands for, one gap after the other."""
    lengths = {name: [] for name in spacing.names}
    index, count = spacing.find(array(found))
    for gap, token, often in zip(found, index.tolist(), count.tolist(), strict=True):
        if token >= 0:
            seconds = gap // (often * SECOND)
            lengths[spacing.names[token]] += [seconds if seconds < 86_400 else seconds // 60 * 60] * often
    return lengths


@settings(max_examples=150, deadline=None)
@given(st.lists(gaps, min_size=1, max_size=4), st.sampled_from([SPACING, Once(SPACING.names, BOUNDS)]), st.randoms())
def test_quartiles_are_those_of_all_lengths_in_any_shards(shards, spacing, random):
    measured = [spacing.measure(array(found)) for found in shards]
    random.shuffle(measured)
    found = quartiles(join(measured), spacing.names, spacing.middles())
    lengths = plain(spacing, [gap for shard in shards for gap in shard])
    for name, middle in zip(spacing.names, spacing.middles(), strict=True):
        its = lengths[name]
        wanted = np.quantile(its, [0, 0.25, 0.5, 0.75, 1], method="inverted_cdf") if its else [middle] * 5
        assert found[name] == list(wanted), name
    assert {name: len(its) for name, its in lengths.items()} == dict(
        zip(spacing.names, join(measured).count_I.tolist(), strict=True)
    )


@settings(max_examples=100, deadline=None)
@given(gaps)
def test_means_are_exact(found):
    mean = means(SPACING.measure(array(found)), SPACING.names, SPACING.middles())
    index, count = SPACING.find(array(found))
    for token, name in enumerate(SPACING.names):
        total, often = array(found)[index == token].sum(), count[index == token].sum()
        assert mean[name] == pytest.approx(total / often / SECOND if often else SPACING.middles()[token], rel=1e-12)


def test_a_token_that_train_lacks_stands_for_the_middle_of_its_range():
    lengths = SPACING.measure(array([HOUR]))
    assert means(lengths, SPACING.names, SPACING.middles())["1d"] == 90.5 * 86_400
    assert quartiles(lengths, SPACING.names, SPACING.middles())["1d"] == [90.5 * 86_400] * 5
    assert quartiles(lengths, SPACING.names, SPACING.middles())["6mt"] == [180 * 86_400] * 5
