"""MEDS dataset to token store, shard by shard, train twice (fit, encode) and the rest once.

Memory is bounded by a shard (and eight bytes a subject, a few dozen a code and shard). The bytes written depend neither
on the executor nor on how often the command was killed and started again.
"""

import dataclasses
import os
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ehr_core.config import to_plain
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.arrays import map_arrays
from ehr_core.formats.folder import (
    Manifest,
    digest_of,
    file_digest,
    file_digests,
    publish,
    read_json,
    verify_below,
    write_json,
    write_manifest,
    write_sealed,
)
from ehr_core.formats.meds import Shard, check_subjects, need_split, shards
from ehr_core.formats.tokens import FORMAT, TOKENIZER, VERSION, TokenizerFile, TokenStore
from ehr_core.plugins import build, registry
from ehr_core.progress import Progress
from ehr_core.protocols import Executor, Tokenizer

from ehr_tokenize.fit import summaries
from ehr_tokenize.plugin import TokenizeConfig
from ehr_tokenize.store import coverage, metadata
from ehr_tokenize.store.jobs import (
    EncodeJob,
    Record,
    SummarizeJob,
    encode,
    is_done,
    load_tokenizer,
    summarize,
    tokenizer_settings,
)
from ehr_tokenize.store.work import Work, working

_NONE = "nothing"


def tokenize(settings: TokenizeConfig) -> TokenStore:
    """Write the token store ``settings.output`` and open it. Raises EhrError."""
    if settings.duplicates not in ("keep", "drop"):
        raise ConfigError(f"duplicates is {settings.duplicates!r}; allowed: keep, drop")
    if settings.grow and not settings.fitted:
        raise ConfigError("grow=true needs the tokenizer that is to grow: give fitted=STORE")
    if settings.fitted and not dataclasses.is_dataclass(settings.tokenizer):  # none was named beside it
        kept = tokenizer_settings(Path(settings.fitted))
        settings = dataclasses.replace(settings, tokenizer=kept)
    elif settings.fitted:
        _refuse_other_settings(to_plain(settings.tokenizer), settings.fitted)
    output = Path(settings.output)
    executor: Executor = build("executor", settings.executor)
    with working(output) as work:
        Run(settings, work, executor).make()
        publish(work.store, output)
    return TokenStore(output)


class Run:
    """One store on its way, in the folder of an attempt that may not be the first."""

    def __init__(self, settings: TokenizeConfig, work: Work, executor: Executor):
        self.settings, self.work, self.executor = settings, work, executor
        self.drop = settings.duplicates == "drop"

    def make(self) -> None:
        """Fill ``work.store``, manifest included."""
        source = build("source", self.settings.source)
        inputs = self._inputs(dict(source.fingerprint()))
        meds, now = self._begin(source, inputs)
        found = shards(meds, now)
        fitting = not self.settings.fitted or self.settings.grow
        train = need_split(found, SPLITS[0], meds) if fitting else []
        bar = Progress("tokenize", len(found) + (len(train) if fitting else 0), "shards")
        try:
            tokenizer = self._fitted(train, bar)
            jobs = self._encode(found, bar)
        finally:
            bar.close()
        content = self._content(tokenizer, meds, jobs)
        plain = self._plain(read_json(self.work.store / TOKENIZER, dict[str, Any]))
        manifest = Manifest(FORMAT, VERSION, _made_by(plain), plain, inputs, content)
        write_manifest(self.work.store, manifest)

    # -- the beginning

    def _inputs(self, fingerprint: dict[str, str]) -> dict[str, str]:
        inputs = {"source": digest_of(fingerprint or to_plain(self.settings.source))}
        if self.settings.fitted:
            names = (TOKENIZER, "vocabulary.json", "prefix.json")
            fitted = Path(self.settings.fitted)
            verify_below(fitted)
            inputs["fitted"] = digest_of([read_json(fitted / name, Any) for name in names])
        return inputs

    def _begin(self, source: Any, inputs: dict[str, str]) -> tuple[Path, int]:
        """The dataset's folder, and when the run was begun, in microseconds since 1970."""
        plain = self._plain(to_plain(self.settings.tokenizer))
        now = self.work.begin(digest_of([plain, inputs, _made_by(plain), _files(plain)]), time.time_ns() // 1000)
        if self.work.source_done.is_file():
            meds = self.work.source
        else:
            self.work.clear_source()
            meds = Path(source.provide(self.work.source, self.executor))
            if meds == self.work.source:
                write_json(self.work.source_done, {})
        return meds, now

    def _plain(self, tokenizer: dict[str, Any]) -> dict[str, Any]:
        """What decides the content. Places and workers do not: the same store made elsewhere has the same manifest."""
        source = {key: value for key, value in to_plain(self.settings.source).items() if key != "path"}
        plain = {"source": source, "tokenizer": tokenizer.get("settings", tokenizer)}
        usual = TokenizeConfig()
        for name in ("duplicates", "grow"):
            if getattr(self.settings, name) != getattr(usual, name):
                plain[name] = getattr(self.settings, name)
        return plain

    # -- the two passes

    def _fitted(self, train: list[Shard], bar: Progress) -> Tokenizer:
        """The tokenizer whose state is in the store: kept from an earlier attempt, given, fitted, or grown."""
        given = Path(self.settings.fitted) if self.settings.fitted else None
        if self.work.fit_done.is_file():
            self._check_kept()
            bar.update(len(train) if given is None or self.settings.grow else 0)
            return load_tokenizer(self.work.store)
        if given is None:
            tokenizer: Tokenizer = build("tokenizer", self.settings.tokenizer)
        else:
            tokenizer = load_tokenizer(given)
        if self.settings.grow and given is not None:
            new = tokenizer.unfitted()
            new.fit(self._summaries(new, train, bar))
            tokenizer.grow(new)
        elif given is None:
            tokenizer.fit(self._summaries(tokenizer, train, bar))
        tokenizer.save(self.work.store)
        write_sealed(self.work.fit_done, {"files": file_digests(self.work.store)})
        self.work.clear_fit()
        return tokenizer

    def _check_kept(self) -> None:
        """Raise FormatError, after which nothing is left to go on from, for another tokenizer than was fitted."""
        for name, digest in read_json(self.work.fit_done, _FitDone).files.items():
            path = self.work.store / name
            if not path.is_file() or file_digest(path) != digest:
                raise FormatError(f"{path} was damaged since the tokenizer was fitted; the same command begins anew")

    def _summaries(self, tokenizer: Tokenizer, train: list[Shard], bar: Progress) -> list[Any]:
        """Summaries of the train shards in order, where possible with their numbers left on disk."""
        kind = tokenizer.summary_type
        fitted = Path(self.settings.fitted) if self.settings.fitted else None
        jobs = [
            SummarizeJob(shard, self.settings.tokenizer, fitted, self.drop, self.work.summary(shard.number))
            for shard in train
        ]
        todo = [job for job in jobs if kind is None or not job.file.is_file()]
        bar.update(len(jobs) - len(todo))
        made = []
        for summary in self.executor.map(summarize, todo):
            made.append(summary)
            bar.update()
        return made if kind is None else [summaries.recall(kind, job.file) for job in jobs]

    def _encode(self, found: list[Shard], bar: Progress) -> list[EncodeJob]:
        """Encode every shard that has not been; returns the jobs of all."""
        stamp = os.urandom(8).hex()
        for split in {shard.split for shard in found}:
            (self.work.store / split).mkdir(exist_ok=True)
        jobs = [
            EncodeJob(shard, self.work.store, stamp, self.drop, self.work.record(shard.split, shard.number))
            for shard in found
        ]
        todo = [job for job in jobs if not is_done(job)]
        bar.update(len(jobs) - len(todo))
        for _ in self.executor.map(encode, todo):
            bar.update()
        return jobs

    # -- the end

    def _content(self, tokenizer: Tokenizer, meds: Path, jobs: list[EncodeJob]) -> dict[str, Any]:
        """What the manifest says about the store, after the checks that need all shards."""
        subject = [np.array(map_arrays(job.file)["subject_id"]) for job in jobs]
        shard = [job.shard for job in jobs]
        check_subjects(shard, subject)
        unnamed = metadata.check_splits(meds, ((s.split, s.path, ids) for s, ids in zip(shard, subject, strict=True)))
        names = list(dict.fromkeys(one.split for one in shard))
        splits: dict[str, Counter[str]] = {split: Counter() for split in names}
        treated: dict[str, Counter[str]] = {split: Counter() for split in names}
        codes: dict[str, coverage.Codes] = {split: {} for split in (*names, "all")}
        mapped: coverage.Mapped = {}
        for job in jobs:
            record = read_json(job.record, Record)
            splits[job.shard.split].update({"shards": 1, **record.counts})
            treated[job.shard.split].update(record.treated)
            coverage.add_mapped(mapped, record.mapped)
            for part in (job.shard.split, "all"):
                coverage.add(codes[part], record.codes)
        facts = metadata.dataset_facts(meds)
        return {
            "vocabulary": tokenizer.vocabulary.digest,
            "vocabulary_size": len(tokenizer.vocabulary),
            "columns": sorted(tokenizer.columns),
            "splits": {split: dict(counts) for split, counts in splits.items()},
            "treated": {split: dict(counts) for split, counts in treated.items()},
            "coverage": {split: coverage.by_prefix(found) for split, found in codes.items()},
            "mappings": coverage.reached(mapped),
            "metadata": {
                "missing": metadata.missing(meds),
                "codes_not_described": metadata.codes_without_metadata(meds, codes["all"]),
                "subjects_without_split": unnamed,
                "dates_shifted": any(one.reading.shifted for one in shard),
            },
            "dataset": {name: str(facts[name]) for name in ("dataset_name", "etl_name") if name in facts},
        }


@dataclasses.dataclass(frozen=True)
class _FitDone:
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """Digests of the tokenizer that was fitted."""


def _refuse_other_settings(given: dict[str, Any], fitted: Path) -> None:
    """Raise ConfigError for tokenizer settings that were changed to something else than the fitted tokenizer has."""
    config = registry().get("tokenizer", given["name"]).config
    assert config is not None, "it was made from a command line"
    usual = to_plain(config())
    if {"tokenizer": given["name"]} not in TokenizeConfig().defaults:
        del usual["name"]  # whoever gave it chose it
    differs = _differing(given, usual, read_json(fitted / TOKENIZER, TokenizerFile).settings, "tokenizer")
    if differs is not None:
        name, value, kept = (textwrap.shorten(str(part), 80) for part in differs)
        name = "tokenizer" if name == "tokenizer.name" else name
        raise ConfigError(f"{name} is {value}, but {kept} in fitted={fitted}, which is used as it is; leave {name} out")


def _differing(given: Any, usual: Any, kept: Any, name: str) -> tuple[str, Any, Any] | None:
    """Name and both values of the first setting that is neither as usual nor as in the fitted tokenizer."""
    if given is None or given in (usual, kept):
        return None
    if isinstance(given, str) and isinstance(kept, str) and Path(given).name == kept:
        return None  # a file, of which a fitted tokenizer keeps the content and the name
    if not isinstance(given, dict) or not isinstance(kept, dict):
        return name, given, kept
    inner = usual if isinstance(usual, dict) else {}
    parts = (_differing(value, inner.get(k, _NONE), kept.get(k, _NONE), f"{name}.{k}") for k, value in given.items())
    first = next((part for part in parts if part is not None), None)
    return first or ((name, given, kept) if kept.keys() - given.keys() and "name" not in given else None)


def _files(plain: Any) -> dict[str, str]:
    """Digests of the files that settings name, such as mappings: another content is another run."""
    if isinstance(plain, str):
        try:
            return {plain: file_digest(Path(plain))} if plain and Path(plain).is_file() else {}
        except OSError as error:
            raise FormatError(f"{plain} cannot be read: {error}") from error
    parts = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ()
    return {name: digest for part in parts for name, digest in _files(part).items()}


def _made_by(plain: dict[str, Any]) -> list[str]:
    parts = [("command", "tokenize"), ("source", plain["source"]["name"]), ("tokenizer", plain["tokenizer"]["name"])]
    return sorted({registry().version(kind, name) for kind, name in parts})
