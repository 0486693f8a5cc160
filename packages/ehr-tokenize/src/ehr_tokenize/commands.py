"""The commands ``tokenize`` and ``make``: the functions of these names, and what there is to say of their results."""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from ehr_core.formats.meds import shards

from ehr_tokenize.plugin import MakeConfig, TokenizeConfig
from ehr_tokenize.sources import making
from ehr_tokenize.store import command, coverage


def tokenize(settings: TokenizeConfig) -> None:
    """Write a token store and print what is in it. Raises EhrError."""
    started = time.perf_counter()
    store = command.tokenize(settings)
    _print_store(store.manifest.content, store.path, time.perf_counter() - started)


def make(settings: MakeConfig) -> None:
    """Write a source's MEDS dataset and print how large it is. Raises EhrError."""
    folder = making.make(settings)
    found = shards(folder)
    events = sum(pq.read_metadata(shard.path).num_rows for shard in found)
    print(f"{events:,} events in {len(found):,} shards -> {folder}")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _print_store(content: dict[str, Any], output: Path, seconds: float) -> None:
    total: Counter[str] = Counter()
    for counts in content["splits"].values():
        total.update(counts)
    known: Counter[str] = Counter()
    for counts in content["coverage"]["all"].values():
        known.update(counts)
    shares = f"UNK {known['unk_events'] / max(known['events'], 1):.2%}"
    if known["left_out_events"]:
        shares += f" and left out {known['left_out_events'] / known['events']:.2%}"
    print(f"{total['events']:,} events of {total['subjects']:,} subjects -> {total['tokens']:,} tokens in {output}")
    print(f"vocabulary {content['vocabulary_size']:,}, {shares} of events, {seconds:.1f} s")
    for line in coverage.reach(content):
        print(line)
    odd: Counter[str] = Counter({"non_finite": total["non_finite"]})
    for counts in content["treated"].values():
        odd.update(counts)
    if total["subjects"] and odd["subjects_without_birth"] == total["subjects"]:
        del odd["subjects_without_birth"]
        _note("no subject has a birth, so nobody's age is known; source.birth=[CODE] of source=meds names the code")
    if content["metadata"]["dates_shifted"]:
        _note("most events are later than the dataset was made: its dates were shifted, and none is called future")
    if any(odd.values()):
        print("treated: " + ", ".join(f"{name} {count:,}" for name, count in sorted(odd.items()) if count))
