"""A vector for every code of a vocabulary: read from files, or learnt from co-occurrence. No torch anywhere.

`embed` and `read_vectors` are imported on first use.
"""

import importlib
from typing import Any

HOMES = {
    "EmbedConfig": "ehr_embeddings.plugin",
    "embed": "ehr_embeddings.command",
    "read_vectors": "ehr_embeddings.vectors",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'ehr_embeddings' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
