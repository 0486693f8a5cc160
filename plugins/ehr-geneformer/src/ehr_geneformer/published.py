"""Published vocabularies and medians, read from JSON or text only, with their own ids.

Geneformer's ``<pad>`` and ``<mask>`` are named here as everywhere in the workbench, ``[PAD]`` and ``[MASK]``, so that a
token is found by its name whatever its id. Pickled dictionaries are refused: reading one can execute code.
"""

from pathlib import Path
from typing import Any

from ehr_core.errors import FormatError
from ehr_core.formats.folder import file_digest, read_json
from ehr_core.formats.vocabulary import PAD, SPECIALS, Token, Vocabulary

NAMES = {f"<{name.strip('[]').lower()}>": name for name in SPECIALS}


def read_vocabulary(path: Path) -> Vocabulary:
    """A vocabulary with the ids of the file: JSON ``{token: id}``, or text with one token a line, ids from 0.

    Raises FormatError when ids are not 0, 1, 2, ... or id 0 is not padding.
    """
    found = _read(path)
    if isinstance(found, str):
        names = found.splitlines()
        if not all(name.strip() for name in names):
            line = next(number for number, name in enumerate(names, 1) if not name.strip())
            raise FormatError(f"{path}, line {line} is empty; a vocabulary has one token a line")
    else:
        ids = list(found.values())
        if not all(isinstance(value, int) for value in ids) or sorted(ids) != list(range(len(ids))):
            raise FormatError(f"{path} must give each token an id, and use 0, 1, 2, ... once each")
        names = sorted(found, key=found.__getitem__)
    tokens = [
        Token(NAMES.get(name, name), "special") if name in NAMES or name in SPECIALS else Token(name, "code", (name,))
        for name in names
    ]
    if not tokens or tokens[PAD].token != SPECIALS[PAD]:
        raise FormatError(f"{path}: id 0 must be <pad> or [PAD], which is what fills the rows of a batch")
    try:
        return Vocabulary(tokens)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def read_medians(path: Path) -> dict[str, float]:
    """Medians by token from JSON ``{token: number above 0}``. Raises FormatError."""
    found = _read(path)
    if isinstance(found, str):
        raise FormatError(f"{path} is no JSON object {{token: median}}")
    for number in found.values():
        if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number < float("inf"):
            raise FormatError(f"{path}: each median must be a number above 0")
    return {name: float(number) for name, number in found.items()}


def _read(path: Path) -> dict[str, Any] | str:
    """The content as a dict, if the file starts as a JSON object, else as text."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from None
    if path.suffix in (".pkl", ".pickle") or content[:1] == b"\x80":
        raise FormatError(f"{path} is a pickle, which can execute code when it is read; convert it to JSON first")
    try:
        text = content.decode()
        if not text.lstrip().startswith("{"):
            return text
        return read_json(path, dict[str, Any])
    except ValueError as error:
        raise FormatError(f"{path} is neither JSON nor text with one token a line: {error}") from error


def described(path: Path) -> dict[str, str]:
    """Name and sha256 of a file, for a tokenizer's state."""
    return {"name": path.name, "sha256": file_digest(path)}
