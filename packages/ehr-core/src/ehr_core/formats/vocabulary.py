"""Vocabulary: token ids, what each stands for, and how often it was seen in training."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ehr_core.errors import FormatError
from ehr_core.formats.folder import digest_of, read_json, write_json

SPECIALS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]", "[MASK]", "[CLS]", "[SEP]")
"""Always ids 0 to 6. What a tokenizer does not use is simply unused."""
PAD, BOS, EOS, UNK, MASK, CLS, SEP = range(7)
FILE = "vocabulary.json"


@dataclasses.dataclass(frozen=True)
class Token:
    """One entry. Its id is its place in the vocabulary."""

    token: str
    kind: str
    """``special``, ``code``, ``quantile``, ``interval``, ``static``, ``age``, ``end``, or a tokenizer's own word.

    ``end`` closes a timeline: it is trained on, and is never part of what a prediction may see.
    """
    codes: tuple[str, ...] = ()
    """MEDS codes that become this token."""
    count: int = 0
    """Occurrences in the train split."""


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    token: str
    kind: str
    codes: tuple[str, ...]
    count: int


class Vocabulary:
    """An ordered list of tokens with lookup by name, equal to another when all tokens are."""

    def __init__(self, tokens: Sequence[Token]):
        self.tokens = tuple(tokens)
        self.ids = {entry.token: index for index, entry in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise FormatError("the vocabulary names a token twice")

    @classmethod
    def build(cls, tokens: Sequence[Token]) -> "Vocabulary":
        """A vocabulary with the specials at the front."""
        return cls([Token(name, "special") for name in SPECIALS] + list(tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, token: str) -> int:
        return self.ids[token]

    def get(self, token: str, default: int = UNK) -> int:
        """The id of a token, or UNK."""
        return self.ids.get(token, default)

    def special(self, name: str) -> int | None:
        """The id of a special token by its name in `SPECIALS`, or None for a published vocabulary that has none.

        Vocabularies that are made here have them at 0 to 6; a published one keeps ids of its own.
        """
        return self.ids.get(name)

    def ids_of_kind(self, kind: str) -> list[int]:
        """Ids of all tokens of a kind, ascending."""
        return [index for index, entry in enumerate(self.tokens) if entry.kind == kind]

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over tokens, kinds and codes in order; counts do not change what an id means."""
        return digest_of([[entry.token, entry.kind, list(entry.codes)] for entry in self.tokens])

    def save(self, folder: Path) -> None:
        """Write ``vocabulary.json``: a list of objects id, token, kind, codes, count."""
        rows = [{"id": index, **dataclasses.asdict(entry)} for index, entry in enumerate(self.tokens)]
        write_json(folder / FILE, rows)

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Read ``vocabulary.json``. Raises FormatError when ids are not 0, 1, 2, ..."""
        rows = read_json(folder / FILE, list[_Row])
        if [row.id for row in rows] != list(range(len(rows))):
            raise FormatError(f"{folder / FILE}: ids are not 0, 1, 2, ... in order")
        if len({row.token for row in rows}) != len(rows):
            raise FormatError(f"{folder / FILE} names a token twice")
        return cls([Token(row.token, row.kind, row.codes, row.count) for row in rows])
