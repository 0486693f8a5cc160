"""A seeded generator of MEDS cohorts with a known truth. Nothing heavy is imported until the source is asked for."""

from typing import Any

from ehr_tokenize.synthetic.settings import SyntheticConfig

__all__ = ["SyntheticConfig", "SyntheticSource", "true_prediction"]

_LAZY = {"SyntheticSource": "source", "true_prediction": "record"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
