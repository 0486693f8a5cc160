"""Which codes a fitted tokenizer does not know: share of events and of codes that became UNK, by prefix of the code.

The tokenizer itself is asked. One for which a code needs company, such as an admission before it, or that may have no
UNK to show for it, has a method ``unknown_events(events) -> {code: events that are unknown}``. For any other, a shard's
codes that no token names are encoded once more, each as the only event of a made-up subject; those whose tokens have an
UNK are unknown. So a code that is put together from known pieces is covered. One that a tokenizer leaves out on purpose
is not unknown; a tokenizer with a method ``left_out(events) -> subjects with such an event`` has it counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
import polars as pl
from ehr_core.formats.vocabulary import SPECIALS, UNK, Vocabulary
from ehr_core.protocols import Tokenizer

OTHER = "(other)"
MOST = 100
"""Prefixes that are listed on their own."""
LEAST = 5
"""A prefix with fewer events is not named: it may be a free text about one person."""
WHEN = datetime(2000, 1, 1)

Codes = dict[str, tuple[int, int, int]]
"""Code to its events, how many of these became UNK, and how many were left out on purpose."""


def unk_id(vocabulary: Vocabulary) -> int:
    """Id of UNK; -1 for a published vocabulary that has none."""
    return vocabulary.ids.get(SPECIALS[UNK], -1)


def known_codes(vocabulary: Vocabulary) -> frozenset[str]:
    """Codes that a token names."""
    return frozenset(code for token in vocabulary.tokens for code in token.codes)


def code_events(events: pl.DataFrame, tokenizer: Tokenizer, known: frozenset[str]) -> Codes:
    """Per code of a shard its events, and how many became UNK."""
    codes = events["code"].cast(pl.Categorical)
    distinct = codes.unique()
    names, place = distinct.cast(pl.String).to_list(), distinct.to_physical().to_numpy()
    code_N = codes.to_physical().to_numpy()
    often = np.bincount(code_N)[place] if names else place
    new = np.zeros(int(place.max(initial=0)) + 1, bool)
    new[place] = [name not in known for name in names]
    counts = dict(zip(names, often.tolist(), strict=True))
    if names and hasattr(tokenizer, "unknown_events"):
        unk: Mapping[str, int] = tokenizer.unknown_events(events)
        return {name: (n, unk.get(name, 0), 0) for name, n in counts.items()}
    unknown, left_out = _alone(events.filter(pl.Series(new[code_N])), tokenizer) if new.any() else (set(), set())
    return {name: (n, n * (name in unknown), n * (name in left_out)) for name, n in counts.items()}


def _alone(events: pl.DataFrame, tokenizer: Tokenizer) -> tuple[set[str], set[str]]:
    """The codes among those of these events that become UNK, or are left out, when they are a subject's only event."""
    aggregated = events.group_by("code").agg(pl.col("time").max(), pl.col("numeric_value").max())
    suspects = aggregated.sort("code")
    more = [pl.lit(None, events.schema[name]).alias(name) for name in events.columns[4:]]
    probe = suspects.select(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("subject_id"),
        # One date for all, as odd dates are not the question; a code that is static stays so.
        pl.when(pl.col("time").is_not_null()).then(pl.lit(WHEN, pl.Datetime("us"))).alias("time"),
        "code",
        "numeric_value",
        *more,
    )
    table = tokenizer.encode(probe)
    unk = np.concatenate([[0], np.cumsum(np.asarray(table.token) == unk_id(tokenizer.vocabulary))])
    has_S = unk[np.asarray(table.offset[1:])] > unk[np.asarray(table.offset[:-1])]
    codes = suspects["code"].to_list()
    subjects = np.asarray(table.subject_id)[has_S], tokenizer.left_out(probe) if hasattr(tokenizer, "left_out") else []
    unknown, left_out = ({codes[subject - 1] for subject in found} for found in subjects)
    return unknown, left_out


def prefix_of(code: str) -> str:
    """``LAB`` of ``LAB//50912//mg/dL``; a code without ``//`` is its own prefix."""
    return code.partition("//")[0]


def add(whole: Codes, part: Mapping[str, Sequence[int]]) -> None:
    """Add the codes of another shard to ``whole``."""
    for code, (events, unk, left_out) in part.items():
        before = whole.get(code, (0, 0, 0))
        whole[code] = before[0] + events, before[1] + unk, before[2] + left_out


def by_prefix(codes: Codes) -> dict[str, dict[str, int]]:
    """``events``, ``unk_events``, ``codes`` and ``unk_codes`` by prefix; rare prefixes together as ``(other)``.

    A prefix some of whose events were left out has ``left_out_events`` as well.
    """
    counts: dict[str, dict[str, int]] = {}
    for code, (events, unk, left_out) in codes.items():
        one = counts.setdefault(prefix_of(code), dict.fromkeys(("events", "unk_events", "codes", "unk_codes"), 0))
        one["events"] += events
        one["unk_events"] += unk
        one["codes"] += 1
        one["unk_codes"] += unk > 0
        if left_out:
            one["left_out_events"] = one.get("left_out_events", 0) + left_out
    order = sorted(counts, key=lambda prefix: (-counts[prefix]["events"], prefix))
    named = [prefix for prefix in order[:MOST] if counts[prefix]["events"] >= LEAST]
    found = {prefix: counts[prefix] for prefix in named}
    rest: Counter[str] = Counter()
    for prefix in set(order) - set(named):
        rest.update(counts[prefix])
    return found | ({OTHER: dict(rest)} if rest else {})
