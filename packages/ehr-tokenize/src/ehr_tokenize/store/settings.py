"""Settings of the commands that look at a token store. Import-light: standard library only."""

from dataclasses import dataclass
from typing import ClassVar

from ehr_core import MISSING


@dataclass
class InspectConfig:
    """What is in a token store, as text and as a page with pictures."""

    positional: ClassVar[tuple[str, ...]] = ("store",)
    store: str = MISSING
    """Token store to look at."""
    page: str | None = None
    """HTML file to write, over an older one. None: ``STORE.html`` beside the store."""
    top: int = 30
    """How many of the most frequent tokens to list."""
    show_subject: int | None = None
    """Subject whose timeline the page shows. None: one of a synthetic cohort, and nobody of any other source."""


@dataclass
class ExportHFConfig:
    """A token store's vocabulary as a tokenizer of Hugging Face transformers."""

    positional: ClassVar[tuple[str, ...]] = ("store", "output")
    store: str = MISSING
    """Token store whose vocabulary to export."""
    output: str = MISSING
    """Folder to make."""
