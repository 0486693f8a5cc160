"""Exact quantiles in bounded memory: against numpy, in groups, by counting, and for any way of sharding."""

import numpy as np
import pytest
from ehr_tokenize.fit import quantiles

NAMES = ["LAB//K", "A", "LAB//GLU", "NOTE", "Z"]


def rows(seed: int, size: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """A code and a number for each row: ties, both zeros, negative and tiny numbers; NOTE has none."""
    random = np.random.default_rng(seed)
    code = random.choice(len(NAMES), size, p=[0.6, 0.2, 0.1, 0.05, 0.05])
    value = (random.normal(size=size) * 10.0 ** random.integers(-3, 4, size)).astype(np.float32)
    value[random.random(size) < 0.3] = np.round(value[random.random(size) < 0.3][:1], 1)[0]
    value[random.random(size) < 0.05] = -0.0
    value[random.random(size) < 0.05] = 0.0
    value[random.random(size) < 0.1] = np.nan
    value[code == NAMES.index("NOTE")] = np.nan
    return code, value


def merged(code: np.ndarray, value: np.ndarray, shards: int, seed: int = 0) -> quantiles.Counts:
    owner = np.random.default_rng(seed).integers(0, shards, len(code))
    return quantiles.merge([quantiles.tally(NAMES, code[owner == s], value[owner == s]) for s in range(shards)])


@pytest.fixture(params=["one group", "groups", "counting"])
def way(request, monkeypatch):
    """How the numbers are read: all at once, some codes at a time, or not at all but counted."""
    monkeypatch.setattr(quantiles, "GROUP", {"one group": 1 << 23, "groups": 2500, "counting": 150}[request.param])
    return request.param


def test_breaks_are_the_quantiles_of_numpy(way):
    code, value = rows(1)
    found = quantiles.quantile_breaks(merged(code, value, 7), 10)
    assert sorted(found) == ["A", "LAB//GLU", "LAB//K", "Z"]
    for name, breaks in found.items():
        mine = value[(code == NAMES.index(name)) & ~np.isnan(value)].astype(np.float64)
        np.testing.assert_allclose(breaks, np.unique(np.quantile(mine, np.arange(1, 10) / 10)), rtol=1e-12, atol=1e-12)


def test_all_ways_give_the_same_bits(monkeypatch):
    code, value = rows(2)
    found = []
    for group in (1 << 23, 2500, 150):
        for shards in (1, 5, 40):
            monkeypatch.setattr(quantiles, "GROUP", group)
            counts = merged(code, value, shards, seed=shards)
            breaks = quantiles.quantile_breaks(counts, 100)
            bins = quantiles.bin_counts(counts, breaks, 100)
            bin_lists = {name: count.tolist() for name, count in bins.items()}
            found.append(repr((counts.names_C, counts.rows_C.tolist(), breaks, bin_lists)))
    assert len(set(found)) == 1
    assert "-0.0," not in found[0]  # equal to 0.0: which of them a sort puts first would be chance


def test_bin_counts_are_a_plain_count(way):
    code, value = rows(3)
    counts = merged(code, value, 3)
    breaks = quantiles.quantile_breaks(counts, 4)
    for name, bins in quantiles.bin_counts(counts, breaks, 4).items():
        mine = value[(code == NAMES.index(name)) & ~np.isnan(value)]
        expected = np.bincount([sum(b < float(v) for b in breaks[name]) for v in mine], minlength=4)
        assert bins.tolist() == expected.tolist()


def test_numbers_of_a_code_can_be_read_as_a_slice(way):
    code, value = rows(4)
    counts = merged(code, value, 6)
    for c, name in enumerate(counts.names_C):
        mine = np.sort(value[(code == NAMES.index(name)) & ~np.isnan(value)])
        assert np.array_equal(counts.value[counts.offset_C[c] : counts.offset_C[c + 1]], mine)


def test_codes_that_are_left_out_leave_the_others_as_they_are(way):
    code, value = rows(5)
    counts = merged(code, value, 6)
    left = counts.without({"LAB//GLU", "A"})
    assert left.names_C == ["LAB//K", "NOTE", "Z"]
    whole = quantiles.quantile_breaks(counts, 10)
    assert quantiles.quantile_breaks(left, 10) == {name: whole[name] for name in ("LAB//K", "Z")}


def test_order_statistics_are_exact_to_the_last_bit_for_any_float(monkeypatch):
    monkeypatch.setattr(quantiles, "CELLS", 3)
    bits = np.random.default_rng(6).integers(0, 1 << 32, 20_000, dtype=np.uint64).astype(np.uint32)
    value = bits.view(np.float32)
    value = value[np.isfinite(value)]
    rank = np.linspace(0, len(value) - 1, 50).astype(np.int64)
    found = quantiles.select(lambda: iter(np.array_split(value, 9)), rank)
    assert np.array_equal(found, np.sort(value)[rank])


def test_no_shard_and_shards_without_numbers_give_no_breaks():
    assert quantiles.quantile_breaks(quantiles.merge([]), 10) == {}
    nothing = quantiles.tally(NAMES, np.array([3, 3]), np.array([np.nan, np.nan], np.float32))
    counts = quantiles.merge([nothing, nothing])
    assert counts.names_C == ["NOTE"]
    assert counts.rows_C.tolist() == [4]
    assert quantiles.quantile_breaks(counts, 10) == {}
