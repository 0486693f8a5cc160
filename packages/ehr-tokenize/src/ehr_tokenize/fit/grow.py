"""Growing a fitted tokenizer for a new site: new codes get new ids at the end, all that was fitted stays as it was.

The new train split is fitted on its own, with the settings of the old tokenizer. Of that fit are taken: the tokens that
stand for codes that the old vocabulary does not have (and tokens without a code, such as a new ``SLOT//UNKNOWN``), the
slots of the prefix that are new, and, in every table of the tokenizer's state, the entries of new codes: their quantile
breaks, their medians. An old code keeps its id, its breaks and its count even where the new site would fit others.

A tokenizer takes part by ``growable = True`` and `unfitted`. It says so when its state is tables by code (and further
values, of which the old ones stay) and when it finds ids by the name of the token. ``dropped`` in its state are codes
that it left out of the vocabulary; those that the new fit takes in are no longer among them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ehr_core.errors import ConfigError
from ehr_core.formats.folder import read_json, write_json
from ehr_core.formats.tokens import TOKENIZER, Prefix, write_prefix
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.protocols import Tokenizer


def unfitted(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of the same settings, to fit on other records. Raises ConfigError for one that cannot grow."""
    if not getattr(tokenizer, "growable", False):
        name = type(tokenizer).__name__
        raise ConfigError(f"grow=true: the tokenizer {name} cannot grow; leave grow out, or fit a new one")
    new: Tokenizer = tokenizer.unfitted()  # type: ignore[attr-defined]
    return new


def grown(old: Tokenizer, new: Tokenizer, folder: Path, scratch: Path) -> None:
    """Write into ``folder`` the state of ``old`` with the codes that ``new``, fitted on other records, has besides."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        places = [Path(name) / "old", Path(name) / "new"]
        for tokenizer, place in zip((old, new), places, strict=True):
            place.mkdir()
            tokenizer.save(place)
        first, second = (read_json(place / TOKENIZER) for place in places)
    known = {code for token in old.vocabulary.tokens for code in (token.token, *token.codes)}
    added = _added(old.vocabulary, new.vocabulary, known)
    vocabulary = Vocabulary([*old.vocabulary.tokens, *added])
    vocabulary.save(folder)
    write_prefix(folder, _prefix(old, new, vocabulary))
    state = _joined(first["state"], second["state"], known)
    if "dropped" in state:
        taken = {code for token in added for code in token.codes}
        state["dropped"] = [code for code in state["dropped"] if code not in taken]
    write_json(folder / TOKENIZER, first | {"state": state})


def _added(old: Vocabulary, new: Vocabulary, known: set[str]) -> list[Token]:
    return [
        token
        for token in new.tokens
        if token.token not in old.ids
        and token.kind != "special"  # a published vocabulary may have its own
        and (not token.codes or any(code not in known for code in token.codes))
    ]


def _joined(old: Any, new: Any, known: set[str]) -> Any:
    """The old value, with the entries of its tables, and of its lists of names, that are of new codes."""
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(name, str) for name in [*old, *new]):
        return [*old, *(name for name in new if name not in old and name not in known)]
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old
    more = {key: value for key, value in new.items() if key not in old and key not in known}
    return {key: _joined(value, new.get(key), known) for key, value in old.items()} | more


def _prefix(old: Tokenizer, new: Tokenizer, vocabulary: Vocabulary) -> Prefix:
    """The old slots, then the new ones; age digits where either has them."""
    slots = [*old.prefix.slots, *(slot for slot in new.prefix.slots if slot not in old.prefix.slots)]
    unknown = dict(zip(old.prefix.slots, old.prefix.unknown, strict=True))
    for slot, index in zip(new.prefix.slots, new.prefix.unknown, strict=True):
        unknown.setdefault(slot, vocabulary[new.vocabulary.tokens[index].token])
    if old.prefix.tens or not new.prefix.tens:
        tens, units, age = old.prefix.tens, old.prefix.units, old.prefix.age_unknown
    else:
        tens, units = (
            tuple(vocabulary[new.vocabulary.tokens[index].token] for index in digits)
            for digits in (new.prefix.tens, new.prefix.units)
        )
        age = vocabulary[new.vocabulary.tokens[new.prefix.age_unknown].token]
    return Prefix(tuple(slots), tuple(unknown[slot] for slot in slots), tens, units, age)
