"""What all checks share: their form, and settings that are small."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ehr_core.component import MISSING, Component
from ehr_core.errors import NotApplicable
from ehr_core.testing.tiny import write_tiny_meds

Check = Callable[[str, Component, Path], None]
"""(kind, component, scratch folder); raises AssertionError with what is wrong, NotApplicable where it cannot know."""


def small_settings(component: Component, **values: Any) -> Any:
    """Default settings, made small where fields for size exist, with required paths filled from ``values``."""
    assert component.config is not None, "this kind needs a dataclass of settings (Component.config)"
    wishes = {"num_subjects": 30, "num_workers": 2, **values}
    names = {f.name for f in dataclasses.fields(component.config)}
    settings: Any = component.config(**{name: value for name, value in wishes.items() if name in names})
    missing = [f.name for f in dataclasses.fields(settings) if getattr(settings, f.name) == MISSING]
    if missing:
        raise NotApplicable(f"{component.name} needs {', '.join(missing)}, which a general check cannot know")
    return settings


def tiny_dataset(folder: Path) -> Path:
    """The tiny MEDS dataset below a scratch folder."""
    meds = folder / "tiny"
    return meds if meds.exists() else write_tiny_meds(meds)


def events_of(path: Path) -> Any:
    """A shard as a Polars frame."""
    import polars as pl

    return pl.read_parquet(path)
