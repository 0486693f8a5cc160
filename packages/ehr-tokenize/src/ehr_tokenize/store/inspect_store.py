"""The command ``ehr-tokenize inspect``: what is in a token store, in a few lines and on a page.

Numbers are of all subjects together. The timeline of a single one is shown only of a synthetic cohort, or when the
subject was asked for by its id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ehr_core.constants import DAY_US, SPLITS
from ehr_core.errors import ConfigError
from ehr_core.formats.folder import read_json
from ehr_core.formats.tokens import TOKENIZER, TokenizerFile, TokenStore, TokenTable, prefix_tokens

from ehr_tokenize.store import coverage, pictures
from ehr_tokenize.store.settings import InspectConfig
from ehr_tokenize.store.treated import NAMES

MOST_TOKENS = 400
"""Tokens of a timeline that are written out."""


@dataclass(frozen=True)
class Figures:
    """What is counted by going through a store once."""

    token_V: np.ndarray
    """Occurrences of each token in all splits."""
    length_S: np.ndarray
    """Tokens of each subject, ascending."""
    bytes: int

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return int(self.token_V.sum())


def inspect(settings: InspectConfig) -> int:
    """Print what is in the store and write the page. Raises EhrError."""
    if settings.top < 1:
        raise ConfigError(f"top is {settings.top}; it must be at least 1")
    store = TokenStore(settings.store)
    path = Path(settings.store)
    target = Path(settings.page) if settings.page else path.with_name(f"{path.resolve().name}.html")
    figures = count(store)
    shown = _chosen(store, settings.show_subject)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(_page(store, figures, settings.top, shown), encoding="utf-8")
    for line in lines(store, figures, settings.top):
        print(line)
    print(f"page: {target}")
    return 0


def count(store: TokenStore) -> Figures:
    """Go through all shards."""
    token_V = np.zeros(len(store.vocabulary), np.int64)
    lengths, size = [np.zeros(0, np.int64)], 0
    for split in store.splits():
        for path, found in zip(store.shards(split), store.tables(split), strict=True):
            token_V += np.bincount(found.token, minlength=len(token_V))
            lengths.append(np.diff(found.offset))
            size += path.stat().st_size
    return Figures(token_V, np.sort(np.concatenate(lengths)), size)


# -- the lines


def lines(store: TokenStore, figures: Figures, top: int) -> Iterator[str]:
    """The store in a few lines of text."""
    content = store.manifest.content
    tokenizer, source = _origin(store)
    yield f"{store.path}: {tokenizer} on {source}" if source else f"{store.path}: {tokenizer}"
    for split, counts in _splits(content):
        shown = ", ".join(f"{counts.get(name, 0):,} {name}" for name in ("shards", "subjects", "events", "tokens"))
        yield f"  {split:<9} {shown}, UNK {_share(counts.get('unk', 0), counts.get('tokens', 0))} of tokens"
    places = ", ".join(f"{name} {value:,}" for name, value in _quantiles(figures.length_S))
    yield f"tokens per subject: {places}"
    yield f"vocabulary: {len(store.vocabulary):,} tokens; {figures.bytes / 1e6:,.1f} MB of shards"
    yield "most frequent tokens:"
    for name, often, _ in _most(store, figures, top):
        yield f"  {often:>12,}  {pictures.shortened(name, 80)}"
    unknown = _unknown(content)
    if unknown:
        yield "not known to the vocabulary, by prefix of the code (all splits):"
        for prefix, c in unknown[:20]:
            events = f"{c['unk_events']:,} of {c['events']:,} events ({_share(c['unk_events'], c['events'])})"
            yield f"  {pictures.shortened(prefix):<24} {events}, {c['unk_codes']:,} of {c['codes']:,} codes"
    yield from coverage.reach(content)
    odd = _treated(content)
    if odd:
        yield "treated: " + ", ".join(f"{name} {number:,}" for name, number in odd)


def _origin(store: TokenStore) -> tuple[str, str | None]:
    """Names of tokenizer and source. Commands beside ``tokenize`` make stores too, and theirs may have no source."""
    return read_json(store.path / TOKENIZER, TokenizerFile).name, store.manifest.settings.get("source", {}).get("name")


def _splits(content: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """Counts of the splits, train first."""
    return sorted(content["splits"].items(), key=lambda entry: SPLITS.index(entry[0]) if entry[0] in SPLITS else 9)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "0%"


def _quantiles(length_S: np.ndarray) -> list[tuple[str, int]]:
    if not len(length_S):
        return []
    names = {"5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "99%": 0.99}
    return [(name, int(length_S[int(q * (len(length_S) - 1))])) for name, q in names.items()]


def _most(store: TokenStore, figures: Figures, top: int) -> list[tuple[str, int, int]]:
    """Name, occurrences and id of the most frequent tokens that occur."""
    order = np.argsort(-figures.token_V, kind="stable")[:top]
    return [(store.vocabulary.tokens[i].token, int(figures.token_V[i]), int(i)) for i in order if figures.token_V[i]]


def _unknown(content: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """Coverage of all splits together, the prefixes with unknown codes only."""
    found = content.get("coverage", {}).get("all", {})
    unknown = [(prefix, counts) for prefix, counts in found.items() if counts["unk_events"]]
    return sorted(unknown, key=lambda entry: (-entry[1]["unk_events"], entry[0]))


def _treated(content: dict[str, Any]) -> list[tuple[str, int]]:
    """What the records had that was odd, all splits together, without zeros."""
    total: Counter[str] = Counter()
    for counts in content.get("treated", {}).values():
        total.update(counts)
    for counts in content["splits"].values():
        total["non_finite"] += counts.get("non_finite", 0)
    return sorted((name, number) for name, number in total.items() if number)


# -- the page


def _page(store: TokenStore, figures: Figures, top: int, shown: tuple[TokenTable, int] | None) -> str:
    content = store.manifest.content
    names = ("shards", "subjects", "events", "tokens", "unk")
    sizes = [
        (split, *(counts.get(n, 0) for n in names), _share(counts.get("unk", 0), counts.get("tokens", 0)))
        for split, counts in _splits(content)
    ]
    edges, bins = _bins(figures.length_S)
    places = ", ".join(f"{name}: {value:,}" for name, value in _quantiles(figures.length_S))
    most = _most(store, figures, top)
    kinds = Counter[str]()
    for index in np.flatnonzero(figures.token_V).tolist():
        kinds[store.vocabulary.tokens[index].kind] += int(figures.token_V[index])
    sections = [
        ("Sizes", pictures.table(("split", *names, "UNK of tokens"), sizes) + _about(store, figures)),
        (
            "Tokens per subject",
            pictures.histogram(edges, bins, "Tokens per subject") + f'<p class="note">{pictures.escaped(places)}</p>',
        ),
        (
            "Most frequent tokens",
            pictures.bars([(name, often, _share(often, figures.tokens)) for name, often, _ in most], "Tokens"),
        ),
        (
            "Kinds of tokens",
            pictures.bars([(k, n, _share(n, figures.tokens)) for k, n in kinds.most_common()], "Kinds"),
        ),
        ("Not known to the vocabulary", _unknown_section(content)),
        (
            "Treated",
            _treated_section(content) + "".join(f"<p>{pictures.escaped(x)}</p>" for x in coverage.reach(content)),
        ),
    ]
    if shown is not None:
        sections.append(_timeline(store, *shown))
    return pictures.page(f"Token store {store.path.resolve().name}", sections)


def _about(store: TokenStore, figures: Figures) -> str:
    tokenizer, source = _origin(store)
    text = (
        f"Tokenizer {tokenizer}{f', source {source}' if source else ''}. Vocabulary of "
        f"{len(store.vocabulary):,} tokens, {int(np.count_nonzero(figures.token_V)):,} of which occur. "
        f"{figures.bytes / 1e6:,.1f} MB. Made by {', '.join(store.manifest.made_by)}."
    )
    return f'<p class="note">{pictures.escaped(text)}</p>'


def _bins(length_S: np.ndarray) -> tuple[list[int], list[int]]:
    """Ranges 0, 1, 2-3, 4-7, ... and how many subjects have so many tokens."""
    most = int(length_S[-1]) if len(length_S) else 0
    edges = [0, *(1 << power for power in range(most.bit_length() + 1))]
    counts = np.histogram(length_S, edges)[0] if len(length_S) else np.zeros(len(edges) - 1, int)
    first = int(np.argmax(counts > 0)) if counts.any() else 0
    return edges[first:], counts[first:].tolist()


def _unknown_section(content: dict[str, Any]) -> str:
    found = _unknown(content)
    if not found:
        return "<p>Every event is known.</p>"
    rows = [(p, c["unk_events"] / c["events"], f"{c['unk_events'] / c['events']:.1%}") for p, c in found[:30]]
    header = ("prefix of the code", "UNK events", "events", "UNK codes", "codes")
    cells = [(p, c["unk_events"], c["events"], c["unk_codes"], c["codes"]) for p, c in found[:30]]
    return pictures.bars(rows, "Share of events that became UNK", pictures.WARN, whole=1.0) + pictures.table(
        header, cells
    )


def _treated_section(content: dict[str, Any]) -> str:
    found = _treated(content)
    reach = "".join(f"<p>{pictures.escaped(line)}</p>" for line in coverage.reach(content))
    if not found:
        return "<p>Nothing in the records was odd.</p>" + reach
    return pictures.table(("what", "how often", ""), [(name, n, NAMES.get(name, "")) for name, n in found]) + reach


# -- one subject


def is_synthetic(store: TokenStore) -> bool:
    """Whether the subjects are made up: the manifest says where the records came from."""
    dataset = store.manifest.content.get("dataset", {})
    made_up = dataset.get("dataset_name") == "synthetic" and dataset.get("etl_name") == "ehr-tokenize"
    return made_up or store.manifest.settings.get("source", {}).get("name") == "synthetic"


def _chosen(store: TokenStore, subject: int | None) -> tuple[TokenTable, int] | None:
    """Shard and row of the subject to show. Raises ConfigError when the one that was asked for is not there."""
    if subject is None and not is_synthetic(store):
        return None
    for split in reversed(store.splits()):
        for found in store.tables(split):
            if subject is None:
                length = np.diff(found.offset)
                if len(length):
                    return found, int(np.argmin(np.abs(length - np.median(length))))
            elif len(at := np.flatnonzero(found.subject_id == subject)):
                return found, int(at[0])
    if subject is None:
        return None
    raise ConfigError(f"show_subject={subject}: {store.path} has no such subject")


def _timeline(store: TokenStore, found: TokenTable, row: int) -> tuple[str, str]:
    """Heading and content: the static prefix, a picture, and the tokens by time."""
    part = slice(int(found.offset[row]), int(found.offset[row + 1]))
    tokens = [store.vocabulary.tokens[i] for i in found.token[part].tolist()]
    time = found.time[part].astype(np.int64)
    subject = int(found.subject_id[row])
    heading = f"Timeline of {'the synthetic ' if is_synthetic(store) else ''}subject {subject}"
    if not len(time):
        return heading, "<p>The record has no token.</p>"
    prefix = [store.vocabulary.tokens[i].token for i in prefix_tokens(store.prefix, found, row, int(time[-1])).tolist()]
    days = ((time - time[0]) / DAY_US).tolist()
    labels = [token.token for token in tokens]
    warning = (
        ""
        if is_synthetic(store)
        else "<p><b>This page shows the record of a person: keep it as you keep those.</b></p>"
    )
    picture = pictures.timeline(days, [token.kind for token in tokens], labels, "Tokens by day")
    rows: list[tuple[str, str]] = []
    for when, label in list(zip(time.tolist(), labels, strict=True))[:MOST_TOKENS]:
        stamp = str(np.datetime64(when, "us"))[:16].replace("T", " ")
        if rows and rows[-1][0] == stamp:
            rows[-1] = (stamp, f"{rows[-1][1]}  {pictures.shortened(label)}")
        else:
            rows.append((stamp, pictures.shortened(label)))
    more = f"<p>{len(labels) - MOST_TOKENS:,} more tokens follow.</p>" if len(labels) > MOST_TOKENS else ""
    known = f"<p>Known at its end: <code>{pictures.escaped('  '.join(prefix))}</code></p>" if prefix else ""
    listing = "".join(
        f"<tr><td style='white-space:nowrap;vertical-align:top'>{stamp}</td>"
        f"<td style='text-align:left'><code>{pictures.escaped(text)}</code></td></tr>"
        for stamp, text in rows
    )
    return heading, f"{warning}{known}{picture}<table>{listing}</table>{more}"
