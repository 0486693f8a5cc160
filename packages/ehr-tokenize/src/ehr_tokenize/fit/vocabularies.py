"""Vocabularies: which codes are frequent enough, in which order tokens stand, and finding them by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

import numpy as np
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.vocabulary import SPECIALS, UNK, Token, Vocabulary

from ehr_tokenize.fit import quantiles
from ehr_tokenize.prepare import arrays


def often_enough(counts: quantiles.Counts, least: int) -> dict[str, int]:
    """Code to rows, for codes with at least so many rows."""
    return {name: int(n) for name, n in zip(counts.names_C, counts.rows_C, strict=True) if n >= least}


def subjects_per_code(rows: arrays.Records) -> dict[str, int]:
    """How many subjects have each code at least once."""
    size = len(rows.names_C)
    pair = np.unique(rows.subject_N * size + rows.code_N)
    count_C = np.bincount(pair % max(size, 1), minlength=size)
    return {rows.names_C[c]: int(count_C[c]) for c in np.flatnonzero(count_C)}


def assemble(
    fixed: list[Token],
    statics: list[Token],
    often: dict[str, int],
    rare: int,
    fused: dict[str, list[Token]] | None = None,
) -> Vocabulary:
    """Specials, the tokens ``fixed``, static tokens, codes by (-count, code); ``fused`` tokens follow their code.

    A code that is both static and in the timeline is one token of kind ``code``. Raises DataError for a code that has
    the name of one of our own tokens: its meaning would be lost.
    """
    fused = fused or {}
    special = [Token(name, "special", (), rare if index == UNK else 0) for index, name in enumerate(SPECIALS)]
    ours = {token.token for token in special + fixed} | {t.token for t in statics if t.codes != (t.token,)}
    ours |= {token.token for found in fused.values() for token in found}
    clash = sorted((set(often) | {t.token for t in statics if t.codes == (t.token,)}) & ours)
    if clash:
        raise DataError(f"the code {clash[0]!r} has the name of a token that the tokenizer makes itself; rename it")
    shared = [
        dataclasses.replace(token, kind="code", count=token.count + often[token.token])
        if token.token in often
        else token
        for token in statics
    ]
    placed = {token.token for token in shared}
    codes: list[Token] = []
    for code in sorted(often, key=lambda code: (-often[code], code)):
        if code not in placed:
            codes.append(Token(code, "code", (code,), often[code]))
        codes += fused.get(code, [])
    return Vocabulary(special + fixed + shared + codes)


def ids_of(vocabulary: Vocabulary, names: Iterable[str]) -> list[int]:
    """Ids of tokens by their exact names. Raises ConfigError for a name that is not there, with the nearest one.

    A vocabulary that is used unchanged must not answer UNK to a misspelt name: a score of the wrong token looks fine.
    """
    found = []
    for name in names:
        if name not in vocabulary.ids:
            near = difflib.get_close_matches(name, vocabulary.ids, n=1, cutoff=0.0)
            raise ConfigError(
                f"the vocabulary has no token {name!r}; the nearest of its {len(vocabulary)} is {near[0]!r}"
            )
        found.append(int(vocabulary[name]))
    return found
