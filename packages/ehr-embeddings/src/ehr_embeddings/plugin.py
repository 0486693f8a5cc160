"""What ehr-embeddings adds: embeddings `file` and `ppmi`, and the command `embed`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core import MISSING, Component, hookimpl
from ehr_core.cli import program


@dataclass
class FileConfig:
    """Vectors by code from a file or a folder."""

    name: str = "file"
    path: Path = MISSING
    """A .parquet (code, vector), .csv (code,v0,...), .txt or .vec (word2vec text), or a folder of code vectors."""
    width: int | None = None
    """What D has to be; another one in the file is an error. null: whatever the file has."""


@dataclass
class PPMIConfig:
    """Positive pointwise mutual information of tokens in the same window of a subject, then truncated SVD."""

    name: str = "ppmi"
    width: int = 64
    """D: singular vectors that are kept."""
    window_days: float = 7.0
    """Length of a window. A subject's windows lie end to end from the first event on."""
    min_count: int = 5
    """Tokens that occur in fewer windows than this get no vector."""
    shift: float = 1.0
    """k of shifted PPMI: log k is subtracted before negative values become zero. 1: no shift."""


@dataclass
class EmbedConfig:
    """Vectors for the vocabulary of a token store."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"embedding": "ppmi"}])
    embedding: Any = MISSING
    store: Path = MISSING
    """Token store whose vocabulary gets vectors, and from whose train split `ppmi` learns."""
    output: Path = MISSING
    """Folder to make."""


@hookimpl
def ehr_embeddings() -> Iterator[Component]:
    yield Component(
        name="file",
        target="ehr_embeddings.files:FileEmbedding",
        config=FileConfig,
        summary="Vectors by code from Parquet, CSV, word2vec text, or a folder of code vectors",
    )
    yield Component(
        name="ppmi",
        target="ehr_embeddings.ppmi:PPMIEmbedding",
        config=PPMIConfig,
        summary="Co-occurrence within a subject's windows: positive PMI, then SVD",
    )


@hookimpl
def ehr_commands() -> Iterator[Component]:
    yield Component(
        name="embed",
        target="ehr_embeddings.command:main",
        config=EmbedConfig,
        summary="A vector for every token of a token store's vocabulary",
    )


main = program("ehr-embed", "ehr-embeddings", "embed")
