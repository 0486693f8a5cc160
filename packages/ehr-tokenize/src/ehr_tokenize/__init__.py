"""From MEDS records to token stores.

`tokenize` and `make` go from settings to what they made. They are imported on first use, so that importing this package
stays light.
"""

import importlib
from typing import Any

HOMES = {
    "TokenizeConfig": "plugin",
    "MakeConfig": "plugin",
    "tokenize": "store.command",
    "make": "sources.making",
    "load_tokenizer": "store.jobs",
}
"""Name to the module that has it."""
__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'ehr_tokenize' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ehr_tokenize.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
