"""The rule of shards: an input shard gives an output shard, and nothing but the place of subjects depends on shards.

For given input shards the store is the same byte for byte, whoever computed it in which order. Another sharding of the
same subjects gives the same vocabulary, breaks and prefix, and every subject the same tokens.
"""

import json

import numpy as np
import pytest
from ehr_core.cli import run
from ehr_core.formats.tokens import TokenStore, prefix_tokens
from ehr_tokenize.fit import quantiles

SIZES = {"train": 40, "tuning": 5, "held_out": 5}
FITTED = ("vocabulary.json", "tokenizer.json", "prefix.json")


def record(subject: int) -> list[tuple]:
    """A subject with static facts, labs with ties, a rare code of its own, and some of it unseen in train."""
    random = np.random.default_rng(subject)
    rows: list[tuple] = [
        (subject, None, f"GENDER//{'MF'[subject % 2]}"),
        (subject, None, "HEIGHT", 150.0 + subject % 30),
    ]
    rows.append((subject, f"{1940 + subject % 40}-03-01", "MEDS_BIRTH"))
    day = 1
    while day < 28:
        when = f"2020-{1 + subject % 12:02}-{day:02}"
        rows.append((subject, when, random.choice(["ADMIT", "VISIT", f"RARE//{subject}"])))
        rows += [
            (subject, when, f"LAB//{random.choice(list('KNA'))}", float(random.integers(-9, 9)) / 4) for _ in range(3)
        ]
        day += int(random.integers(1, 9))
    return rows


def dataset(world, folder, shards: int, seed: int):
    """The same subjects dealt to so many shards a split at random."""
    random, first, splits = np.random.default_rng(seed), 1, {}
    for split, size in SIZES.items():
        owner = random.integers(0, shards, size)
        subjects = np.arange(first, first + size)
        first += size
        splits[split] = [[row for s in subjects[owner == k] for row in record(int(s))] for k in range(shards)]
    return world.write_meds(folder, **splits)


def tokenize(meds, output, *more: str):
    arguments = ["source=meds", f"source.path={meds}", f"output={output}", "tokenizer.min_count=3", *more]
    run("ehr-tokenize", "tokenize", [*arguments, "source.latest=2030-01-01"])
    return output


def by_subject(path) -> dict[int, tuple]:
    """Everything that a store says about each subject."""
    store, found = TokenStore(path), {}
    for split in store.splits():
        for table in store.tables(split):
            for row, subject in enumerate(table.subject_id.tolist()):
                part = slice(table.offset[row], table.offset[row + 1])
                prefix = prefix_tokens(store.prefix, table, row, 1_600_000_000_000_000).tolist()
                found[subject] = (split, table.token[part].tolist(), table.time[part].tolist(), prefix)
    return found


@pytest.mark.parametrize("group", [1 << 23, 60])
def test_another_sharding_gives_every_subject_the_same_tokens(world, tmp_path, monkeypatch, group):
    monkeypatch.setattr(quantiles, "GROUP", group)
    stores = [tokenize(dataset(world, tmp_path / f"m{n}", n, seed=n), tmp_path / f"s{n}") for n in (1, 3, 12)]
    for name in FITTED:
        assert len({(store / name).read_bytes() for store in stores}) == 1, name
    assert by_subject(stores[0]) == by_subject(stores[1]) == by_subject(stores[2])
    contents = [json.loads((store / "manifest.json").read_text())["content"] for store in stores]
    for content in contents:
        for split in content["splits"]:
            content["splits"][split].pop("shards")
            content["treated"][split].pop("shards_empty")
    assert contents[0] == contents[1] == contents[2]


def test_an_input_shard_is_an_output_shard(world, tmp_path):
    meds = dataset(world, tmp_path / "meds", 4, seed=9)
    store = TokenStore(tokenize(meds, tmp_path / "store"))
    import polars as pl

    for split in SIZES:
        assert len(store.shards(split)) == 4
        for number, table in enumerate(store.tables(split)):
            subjects = pl.read_parquet(meds / "data" / split / f"{number}.parquet")["subject_id"].unique().sort()
            assert table.subject_id.tolist() == subjects.to_list()


def test_the_order_of_subjects_in_shards_does_not_reach_the_fit(world, tmp_path):
    meds = dataset(world, tmp_path / "meds", 3, seed=1)
    one = tokenize(meds, tmp_path / "one")
    train = meds / "data" / "train"
    (train / "0.parquet").rename(train / "x.parquet")
    (train / "2.parquet").rename(train / "0.parquet")
    (train / "x.parquet").rename(train / "2.parquet")
    two = tokenize(meds, tmp_path / "two")
    for name in FITTED:
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert (one / "train" / "0.safetensors").read_bytes() == (two / "train" / "2.safetensors").read_bytes()
