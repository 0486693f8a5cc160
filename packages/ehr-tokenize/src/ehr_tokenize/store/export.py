"""The command ``ehr-tokenize export-hf``: a vocabulary as a folder that ``AutoTokenizer.from_pretrained`` loads.

The tokenizer is a word-level one that splits at white space; ids are those of the store. White space in a token would
split it, so each of its characters is written as ``%`` and two hexadecimal digits per UTF-8 byte, as in a URL, and a
``%`` that two hexadecimal digits follow becomes ``%25``. `plain` turns such a text back.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ehr_core.errors import FormatError
from ehr_core.formats.folder import new_folder, write_json
from ehr_core.formats.tokens import TokenStore
from ehr_core.formats.vocabulary import Vocabulary

from ehr_tokenize.store.settings import ExportHFConfig

ROLES = ("pad", "bos", "eos", "unk", "mask", "cls", "sep")


def export_hf(settings: ExportHFConfig) -> int:
    """Write the folder ``settings.output``. Raises EhrError."""
    store = TokenStore(settings.store)
    files = tokenizer_files(store.vocabulary)
    output = Path(settings.output)
    with new_folder(output) as partial:
        for name, content in files.items():
            write_json(partial / name, content)
    print(
        f"{len(store.vocabulary):,} tokens -> {output}; load them with AutoTokenizer.from_pretrained({str(output)!r})"
    )
    return 0


def escape(token: str) -> str:
    """A token without white space; two tokens never become one."""
    kept = re.sub(r"%(?=[0-9A-Fa-f]{2})", "%25", token)
    return re.sub(r"[\s\x00-\x1f\x7f]", lambda found: quote(found[0], safe=""), kept)


def plain(token: str) -> str:
    """The token that `escape` was given."""
    return unquote(token)


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, Any]:
    """File name to JSON. A published vocabulary without UNK reads unknown words as padding, as Geneformer's does.

    Raises FormatError when the vocabulary has neither.
    """
    names = [escape(entry.token) for entry in vocabulary.tokens]
    special = [index for index, entry in enumerate(vocabulary.tokens) if entry.kind == "special"]
    roles = _roles(vocabulary, special, names)
    if "unk_token" not in roles and "pad_token" not in roles:
        raise FormatError("the vocabulary has no token for unknown words or padding; transformers cannot do without")
    roles.setdefault("unk_token", roles.get("pad_token", ""))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": names[index], **flags} for index in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {name: index for index, name in enumerate(names)},
            "unk_token": roles["unk_token"],
        },
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **roles}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "special_tokens_map.json": roles}


def _roles(vocabulary: Vocabulary, special: list[int], names: list[str]) -> dict[str, str]:
    """``pad_token`` and so on, from special tokens such as ``[PAD]`` or ``<pad>``."""
    found = {}
    for index in special:
        word = vocabulary.tokens[index].token.strip("[]<>|").lower()
        if word in ROLES:
            found[f"{word}_token"] = names[index]
    return found
