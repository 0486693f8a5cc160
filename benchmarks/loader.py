"""Tokens a second that the training loader delivers, beside what a memory map gives when nothing is asked of it.

    python benchmarks/loader.py [--subjects 20000] [--rounds 3]

A store of random timelines is written to a temporary folder (lengths log-normal, median 300). Measured in turns, in one
process and one thread, on batches of 32 x 1024:

    floor, sample   one slice of 1024 tokens per row from the memory map, whatever subjects they belong to
    floor, gather   one fancy index over the memory map for the whole batch
    loader          windows, packing, prefixes, positions, segments: complete batches, made in this thread
    feed            the same through the background thread

"real" counts tokens of timelines, "slots" counts all positions. Planning an epoch (cuts, prefixes, packing) is reported
apart and is part of the loader's rate as well, spread over the epoch.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ehr_core.formats.folder import Manifest, write_manifest
from ehr_core.formats.tokens import FORMAT, NO_TIME, VERSION, Prefix, TokenStore, TokenTable, write_prefix
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_train.loader.feed import Feed, Share, num_steps, steps
from ehr_train.loader.windows import Windows

BATCH, CONTEXT, SHARDS = 32, 1024, 8
DAY = 86_400_000_000


def write_store(path: Path, num_subjects: int) -> None:
    """Random timelines in several shards."""
    rng = np.random.default_rng(7)
    codes = [Token(f"CODE//{n}", "code") for n in range(3000)]
    ages = [Token(f"AGE//{n}", "age") for n in range(10)] + [Token("AGE//?", "age")]
    vocabulary = Vocabulary.build([*codes, Token("SEX//?", "static"), Token("SEX//F", "static"), *ages])
    digits = tuple(vocabulary[f"AGE//{n}"] for n in range(10))
    path.mkdir()
    vocabulary.save(path)
    write_prefix(path, Prefix(("SEX",), (vocabulary["SEX//?"],), digits, digits, vocabulary["AGE//?"]))
    for shard in range(SHARDS):
        S = num_subjects // SHARDS
        length = np.clip(np.exp(rng.normal(5.7, 1.0, S)), 1, 12_000).astype(np.int64)
        offset = np.concatenate([[0], length.cumsum()])
        time_N = np.concatenate([np.sort(rng.integers(0, 4000, n)) for n in length]) * DAY
        TokenTable(
            subject_id=np.arange(S) + shard * S,
            offset=offset,
            token=rng.integers(7, 3007, offset[-1]).astype(np.uint16),
            time=time_N,
            birth=-rng.integers(0, 80 * 365, S) * DAY,
            static_offset=np.arange(S + 1),
            static_slot=np.zeros(S, np.uint16),
            static_token=np.full(S, vocabulary["SEX//F"], np.uint16),
            static_time=np.full(S, NO_TIME),
        ).write(path / "train" / f"{shard}.safetensors")
    content = {"vocabulary": vocabulary.digest, "columns": []}
    write_manifest(path, Manifest(FORMAT, VERSION, ["benchmark"], {}, {}, content))


def floor_sample(store: TokenStore) -> tuple[int, int]:
    """Slices of fixed length, collated by hand."""
    done = 0
    for table in store.tables("train"):
        starts = np.random.default_rng(0).permutation(len(table.token) // CONTEXT) * CONTEXT
        for first in range(0, len(starts) - BATCH, BATCH):
            batch = np.empty((BATCH, CONTEXT), np.int64)
            for row, start in enumerate(starts[first : first + BATCH]):
                batch[row] = table.token[start : start + CONTEXT]
            done += torch.from_numpy(batch).numel()
    return done, done


def floor_gather(store: TokenStore) -> tuple[int, int]:
    """One fancy index a batch."""
    done = 0
    for table in store.tables("train"):
        starts = np.random.default_rng(0).permutation(len(table.token) // CONTEXT) * CONTEXT
        for first in range(0, len(starts) - BATCH, BATCH):
            index = starts[first : first + BATCH, None] + np.arange(CONTEXT)
            done += torch.from_numpy(table.token[index].astype(np.int64)).numel()
    return done, done


def loader(store: TokenStore) -> tuple[int, int]:
    """Complete batches of an epoch in this thread, planning included."""
    rows = Windows(store, "train", CONTEXT, 0).epoch(0)
    real = slots = 0
    for first in range(0, len(rows) - BATCH + 1, BATCH):
        batch = rows.batch(np.arange(first, first + BATCH))
        slots += batch.token_BT.numel()
        real += int(((batch.segment_BT > 0) & ~batch.static_BT).sum())
    return real, slots


def feed(store: TokenStore) -> tuple[int, int]:
    """The same through the background thread."""
    data, share = Windows(store, "train", CONTEXT, 0), Share(0, 1, BATCH, 1)
    total = num_steps(len(data.epoch(0)), share)
    source = Feed(steps(data, share, 0, 0), pin=False)
    real = slots = 0
    for _ in range(total):
        batch = next(source).micro[0]
        slots += batch.token_BT.numel()
        real += int(((batch.segment_BT > 0) & ~batch.static_BT).sum())
    source.close()
    return real, slots


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, Callable[[TokenStore], tuple[int, int]]] = {
        "floor, sample": floor_sample,
        "floor, gather": floor_gather,
        "loader": loader,
        "feed": feed,
    }
    with tempfile.TemporaryDirectory() as name:
        write_store(Path(name) / "store", arguments.subjects)
        store = TokenStore(Path(name) / "store")
        start = time.perf_counter()
        rows = Windows(store, "train", CONTEXT, 0).epoch(0)
        planning = time.perf_counter() - start
        empty = 1 - rows.tokens_R.sum() / (len(rows) * CONTEXT)
        print(f"{int(rows.length_W.sum()):,} tokens, {len(rows.length_W):,} windows in {len(rows):,} rows")
        print(f"padding {empty:.3%}; planning an epoch {planning:.2f} s")
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        sizes = {}
        for _ in range(arguments.rounds):
            for way, function in ways.items():
                start = time.perf_counter()
                sizes[way] = function(store)
                seconds[way].append(time.perf_counter() - start)
    best = {way: sizes[way][0] / float(np.median(seconds[way])) for way in ways}
    print(f"\n{'':<14} {'real M tokens/s':>16} {'slots M/s':>10} {'share of floor, sample':>23}")
    for way, rate in best.items():
        slots = rate * sizes[way][1] / sizes[way][0]
        print(f"{way:<14} {rate / 1e6:>16.1f} {slots / 1e6:>10.1f} {rate / best['floor, sample']:>23.2f}")


if __name__ == "__main__":
    main()
