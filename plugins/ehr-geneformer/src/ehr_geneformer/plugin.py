"""What ehr-geneformer brings: rank-value tokens and their encoder, and a command for ranked sentences. Import-light."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core import MISSING, Component, hookimpl
from ehr_models.bert_settings import BertConfig
from ehr_tokenize.grammars.settings import GrammarConfig


@dataclass
class RankValueConfig(GrammarConfig):
    """Codes in order of value over the code's median, as in Geneformer (Theodoris et al. 2023)."""

    name: str = "rank_value"
    max_length: int = 2048
    """Tokens that a sentence keeps, from the highest rank down."""
    reduce: str = "mean"
    """``mean`` or ``last``: what becomes of several values of a code of one subject."""
    scale_total: float = 0.0
    """Scale the values of a subject to this sum first (Geneformer: 10000, for counts); 0: leave them as they are."""
    min_count: int = 5
    """A code that fewer subjects of train have becomes [UNK]; not used with a published ``vocabulary``."""
    hours: float = 0.0
    """Rank what the first so many hours of a record hold, known when they are over; 0: the whole record."""
    vocabulary: Path | None = None
    """Published vocabulary that keeps its ids: JSON ``{token: id}``, or a text file with one token a line."""
    medians: Path | None = None
    """Published medians, JSON ``{token: median}``; without it medians are fitted on train."""


@dataclass
class RankedStoreConfig:
    """Sentences that are ranked already, as a token store."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_"])
    path: Path = MISSING
    """Parquet file, or folder of them, with ``input_ids`` (lists) and perhaps ``length``."""
    vocabulary: Path = MISSING
    """The vocabulary of these ids: JSON ``{token: id}``, or a text file with one token a line."""
    output: Path = MISSING
    """Folder to make; it must not exist yet, or be empty."""
    medians: Path | None = None
    """Medians, JSON ``{token: median}``, kept beside the vocabulary so that further data can be ranked alike."""
    splits: dict[str, float] = field(default_factory=lambda: {"train": 0.8, "tuning": 0.1, "held_out": 0.1})
    """Share of each split; a hash of (seed, row) decides where a sentence goes."""
    shard_rows: int = 100_000
    """Sentences read and written at once: the bound of memory."""
    seed: int = 0
    """Part of the hash that splits."""


@dataclass
class GeneformerConfig(BertConfig):
    """Geneformer: BERT over ranked tokens, with ReLU."""

    name: str = "geneformer"
    context_length: int = 2048
    activation: str = "relu"
    dropout: float = 0.02
    attention_dropout: float = 0.02
    token_types: int = 2
    layers: str = "torch"
    """``torch``, or ``te``: the linear layers of the blocks are Transformer Engine's (CUDA only); the same network."""
    precision: str = "trainer"
    """``trainer``: as ``train.precision`` says; ``fp8``: the linear layers of the blocks in 8 bits where device and
    ``layers=te`` allow, else in bf16, with a notice."""


@hookimpl
def ehr_models() -> Iterator[Component]:
    yield Component(
        name="geneformer",
        target="ehr_geneformer.model:build",
        config=GeneformerConfig,
        summary="Geneformer: BERT over ranked tokens; Transformer Engine and FP8 where there are",
    )


@hookimpl
def ehr_tokenizers() -> Iterator[Component]:
    yield Component(
        name="rank_value",
        target="ehr_geneformer.tokenizer:RankValue",
        config=RankValueConfig,
        summary="One sentence a subject: codes by value over the code's median",
    )


@hookimpl
def ehr_commands() -> Iterator[Component]:
    yield Component(
        name="ranked-store",
        target="ehr_geneformer.ranked:ranked_store",
        config=RankedStoreConfig,
        summary="Turn ranked Parquet (input_ids, length) into a token store",
    )
