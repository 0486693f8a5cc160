"""The command ``tokenize``: MEDS dataset to token store, shard by shard, train twice (fit, encode) and the rest once.

Memory is bounded by a shard and the numbers of train. The bytes written do not depend on the executor.
"""

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ehr_core.config import from_plain, to_plain
from ehr_core.errors import DataError
from ehr_core.formats.folder import Manifest, check_free, digest_of, new_folder, read_json, write_manifest
from ehr_core.formats.tokens import FORMAT, TOKENIZER, VERSION
from ehr_core.formats.vocabulary import SPECIALS, UNK
from ehr_core.plugins import build, registry
from ehr_core.progress import Progress
from ehr_core.protocols import Executor, Tokenizer

from ehr_tokenize.meds import SPLITS, Shard, read_counted, read_events, shards
from ehr_tokenize.plugin import TokenizeConfig


def tokenize(settings: TokenizeConfig) -> int:
    """Write the token store ``settings.output`` and print what is in it. Raises EhrError."""
    started = time.perf_counter()
    output = Path(settings.output)
    check_free(output)
    executor: Executor = build("executor", settings.executor)
    with _provided(settings, output, executor) as (meds, inputs), new_folder(output) as partial:
        found = shards(meds)
        train = [shard for shard in found if shard.split == SPLITS[0]]
        bar = Progress("tokenize", len(found) + (0 if settings.fitted else len(train)), "shards")
        try:
            tokenizer = _fitted(settings, train, executor, bar)
            tokenizer.save(partial)
            results = _encode_all(found, partial, executor, bar)
        finally:
            bar.close()
        splits = _totals(found, results)
        content = {
            "vocabulary": tokenizer.vocabulary.digest,
            "vocabulary_size": len(tokenizer.vocabulary),
            "columns": sorted(tokenizer.columns),
            "splits": splits,
        }
        plain = _plain(settings, read_json(partial / TOKENIZER)["settings"])
        write_manifest(partial, Manifest(FORMAT, VERSION, _made_by(plain), plain, inputs, content))
    _report(splits, len(tokenizer.vocabulary), output, time.perf_counter() - started)
    return 0


@contextlib.contextmanager
def _provided(settings: TokenizeConfig, output: Path, executor: Executor) -> Iterator[tuple[Path, dict[str, str]]]:
    """The dataset's folder and the digests of the inputs; what the source wrote is removed at the end."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f"{output.name}.source-{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        source = build("source", settings.source)
        meds = Path(source.provide(folder, executor))
        inputs = {"source": digest_of(dict(source.fingerprint()) or to_plain(settings.source))}
        if settings.fitted:
            names = (TOKENIZER, "vocabulary.json", "prefix.json")
            inputs["fitted"] = digest_of([read_json(Path(settings.fitted) / name) for name in names])
        yield meds, inputs
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fitted(settings: TokenizeConfig, train: list[Shard], executor: Executor, bar: Progress) -> Tokenizer:
    """The tokenizer, loaded or fitted on the train shards."""
    if settings.fitted:
        return _load(Path(settings.fitted))
    tokenizer: Tokenizer = build("tokenizer", settings.tokenizer)
    summaries = []
    for summary in executor.map(_summarize, [(shard.path, settings.tokenizer) for shard in train]):
        summaries.append(summary)
        bar.update()
    tokenizer.fit(summaries)
    return tokenizer


def _load(folder: Path) -> Tokenizer:
    found = read_json(folder / TOKENIZER)
    tokenizer: Tokenizer = build("tokenizer", from_plain("tokenizer", {"name": found["name"], **found["settings"]}))
    tokenizer.load(folder)
    return tokenizer


def _summarize(item: tuple[Path, Any]) -> Any:
    path, settings = item
    tokenizer: Tokenizer = build("tokenizer", settings)
    return tokenizer.summarize(read_events(path, event_columns(tokenizer)))


def event_columns(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Columns of the events that a tokenizer wants beyond the four of MEDS: its ``event_columns``, if it has any."""
    return tuple(getattr(tokenizer, "event_columns", ()))


@dataclass(frozen=True)
class EncodeJob:
    """One shard to encode with the tokenizer whose state lies in a folder."""

    shard: Shard
    tokenizer: Path
    stamp: str
    """Names the run, so that a process may keep a loaded tokenizer for all shards of it and no longer."""


@dataclass(frozen=True)
class Encoded:
    """What became of one shard."""

    subject_id_S: np.ndarray
    counts: dict[str, int]


@lru_cache(maxsize=1)
def _kept(folder: Path, stamp: str) -> Tokenizer:
    return _load(folder)


def _encode(job: EncodeJob) -> Encoded:
    tokenizer = _kept(job.tokenizer, job.stamp)
    events, non_finite = read_counted(job.shard.path, event_columns(tokenizer))
    table = tokenizer.encode(events)
    unknown = tokenizer.vocabulary.ids.get(SPECIALS[UNK], -1)  # a published vocabulary may have none
    table.write(job.tokenizer / job.shard.split / f"{job.shard.number}.safetensors")
    counts = {
        "subjects": len(table.subject_id),
        "events": len(events),
        "tokens": len(table.token),
        "unk": int((table.token == unknown).sum()),
        "non_finite": non_finite,
    }
    return Encoded(np.array(table.subject_id), counts)


def _encode_all(found: list[Shard], folder: Path, executor: Executor, bar: Progress) -> list[Encoded]:
    """Encode every shard into the folder that holds the tokenizer's state."""
    stamp = os.urandom(8).hex()
    results = []
    for result in executor.map(_encode, [EncodeJob(shard, folder, stamp) for shard in found]):
        results.append(result)
        bar.update()
    _refuse_shared_subjects(found, results)
    return results


def _refuse_shared_subjects(found: list[Shard], results: list[Encoded]) -> None:
    """Raise DataError when a subject is in two shards, and so perhaps in train and held_out at once."""
    subject = np.concatenate([result.subject_id_S for result in results])
    owner = np.repeat(np.arange(len(results)), [len(result.subject_id_S) for result in results])
    order = np.argsort(subject, kind="stable")
    twice = np.flatnonzero(np.diff(subject[order]) == 0)
    if len(twice):
        first, second = (found[owner[order[twice[0] + step]]].path for step in (0, 1))
        raise DataError(
            f"{len(twice)} subjects are in more than one shard, one of them in {first} and {second}; "
            "MEDS keeps each subject in one shard of one split"
        )


def _totals(found: list[Shard], results: list[Encoded]) -> dict[str, dict[str, int]]:
    totals: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for shard, result in zip(found, results, strict=True):
        totals[shard.split].update({"shards": 1, **result.counts})
    return {split: dict(counts) for split, counts in totals.items()}


def _plain(settings: TokenizeConfig, tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What decides the content. Places and workers do not: the same store made elsewhere has the same manifest."""
    source = {key: value for key, value in to_plain(settings.source).items() if key != "path"}
    return {"source": source, "tokenizer": tokenizer}


def _made_by(plain: dict[str, Any]) -> list[str]:
    parts = [("command", "tokenize"), ("source", plain["source"]["name"]), ("tokenizer", plain["tokenizer"]["name"])]
    return sorted({registry().version(kind, name) for kind, name in parts})


def _report(splits: dict[str, dict[str, int]], vocabulary: int, output: Path, seconds: float) -> None:
    total: Counter[str] = Counter()
    for counts in splits.values():
        total.update(counts)
    share = total["unk"] / max(total["events"], 1)
    print(f"{total['events']:,} events of {total['subjects']:,} subjects -> {total['tokens']:,} tokens in {output}")
    print(f"vocabulary {vocabulary:,}, UNK {share:.2%} of events, {seconds:.1f} s", end="")
    print(f", {total['non_finite']:,} non-finite numbers left out" if total["non_finite"] else "")
