"""Which codes a fitted tokenizer does not know: share of events and of codes that became UNK, by prefix of the code.

The tokenizer itself is asked (`unknown_events`, `left_out_events`). What it leaves out on purpose is not unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from ehr_core.formats.vocabulary import SPECIALS, UNK, Vocabulary
from ehr_core.protocols import Tokenizer

OTHER = "(other)"
MOST = 100
"""Prefixes that are listed on their own."""
LEAST = 5
"""A prefix with fewer events is not named: it may be a free text about one person."""

Codes = dict[str, tuple[int, int, int]]
"""Code to its events, how many of these became UNK, and how many were left out on purpose."""


def unk_id(vocabulary: Vocabulary) -> int:
    """Id of UNK; -1 for a published vocabulary that has none."""
    return vocabulary.ids.get(SPECIALS[UNK], -1)


def code_events(events: pl.DataFrame, tokenizer: Tokenizer) -> Codes:
    """Per code of a shard its events, how many became UNK, and how many were left out."""
    unknown, left_out = tokenizer.unknown_events(events), tokenizer.left_out_events(events)
    counts = events["code"].value_counts(sort=False, name="events")
    return {code: (n, unknown.get(code, 0), left_out.get(code, 0)) for code, n in counts.iter_rows()}


Mapped = dict[str, dict[str, tuple[int, bool]]]
"""By name of a mapping file, what is looked up in it: in how many events, and whether it is there."""


def add_mapped(whole: Mapped, part: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    """Add what another shard looked up to ``whole``."""
    for name, looked in part.items():
        mine = whole.setdefault(name, {})
        for text, (events, there) in looked.items():
            mine[text] = (mine.get(text, (0, there))[0] + events, bool(there))


def reached(mapped: Mapped) -> dict[str, dict[str, int]]:
    """By name of a mapping file: ``codes`` and ``events`` that were looked up, and how many of them it has."""
    return {
        name: {
            "codes": len(looked),
            "codes_found": sum(there for _, there in looked.values()),
            "events": sum(events for events, _ in looked.values()),
            "events_found": sum(events for events, there in looked.values() if there),
        }
        for name, looked in mapped.items()
    }


def reach(content: dict[str, Any]) -> list[str]:
    """How much each mapping file reached, a line each, from the content of a store's manifest."""
    return [
        f"{name}: reached {n['codes_found']:,} of {n['codes']:,} codes, {n['events_found']:,} of {n['events']:,} events"
        for name, n in content.get("mappings", {}).items()
    ]


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
