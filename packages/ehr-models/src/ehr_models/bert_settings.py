"""Settings of the encoder and of the masked objective. Nothing heavy is imported here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass
class ColumnConfig:
    """A column of the token store that is embedded: one of ``size`` vectors is added at each token."""

    size: int = 0
    """Rows of the table; 0: the column is left out."""
    transform: str = "clamp"
    """How a number becomes a row. ``index``: as it is, others are an error; ``clamp``: cut to 0 and ``size`` - 1;
    ``age``: days to bins of ``unit`` years, cut to ``size`` - 2, and ``size`` - 1 where birth is unknown (below 0).
    A year has 365.25 days here, as published: a bin begins within a day of the birthday."""
    unit: float = 1.0
    """Years in a bin, for ``age``; a multiple of 0.001."""


@dataclass
class CodeVectorsConfig:
    """Start the token table from a folder of code vectors (``ehr-embed``)."""

    path: Path | None = None
    """The folder; null: start at random."""
    project: bool = True
    """A trained linear layer between vectors and model; without one their widths must agree."""
    freeze: bool = False
    """Whether the table (all its rows) stays as it is."""
    width: int = 0
    """Width of the vectors. Filled in when they are read, so that a run can be loaded without the folder."""
    digest: str = ""
    """Digest of the folder that was read; filled in."""


@dataclass
class BertConfig:
    """A bidirectional encoder; the defaults are of a size for a laptop."""

    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "before each branch": {"norm": "pre", "tied": False, "embedding_width": 16, "attention_dropout": 0.1},
        "rotated by age": {"positions": "rotary", "position_column": "age_days", "rotary_base": 1e5},
        "columns": {
            "positions": "sinusoidal",
            "weight_init": "orthogonal",
            "columns": {"age_days": ColumnConfig(22, "age", 5.0), "visit": ColumnConfig(8)},
            "token_types": 2,
        },
    }
    """What conformance checks try besides the defaults."""
    name: str = "bert"
    num_layers: int = 3
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads; ``width`` is a multiple of it."""
    width: int = 96
    """Width D of the hidden states."""
    mlp_width: int = 384
    """Width of the MLP's inner layer."""
    embedding_width: int = 0
    """Width of all embeddings; a linear layer follows where it is not ``width``. 0: ``width``."""
    context_length: int = 256
    """Positions: the longest window that the model can read."""
    dropout: float = 0.1
    """Dropout of embeddings and both residual branches, in training only."""
    attention_dropout: float = 0.0
    """Dropout of attention weights; above 0 attention on CUDA cannot skip what lies between windows."""
    activation: str = "gelu"
    """``gelu`` (the exact one), ``relu`` or ``silu``."""
    norm: str = "post"
    """``post``: LayerNorm after each residual sum, as in BERT; ``pre``: before each branch, and one at the end."""
    epsilon: float = 1e-12
    """Of every LayerNorm."""
    positions: str = "learned"
    """``learned``, ``sinusoidal`` (fixed), ``rotary`` or ``none``."""
    position_column: str = ""
    """Column of the store to take positions from, for example ``visit`` or ``age_days``; empty: place in the window.
    With ``learned`` its values are cut to the rows that there are."""
    rotary_base: float = 10000.0
    """Longest wavelength over 2 pi, for ``rotary``; in units of the position."""
    columns: dict[str, ColumnConfig] = field(default_factory=dict)
    """Columns of the token store to embed, by name; one that a store does not have is left out, with a notice."""
    token_types: int = 0
    """Rows of a table of token types, all of type 0 unless ``token_type_ids`` are given; 0: no table."""
    weight_init: str = "normal"
    """``normal`` (0.02), ``orthogonal``, ``xavier`` or ``kaiming``: how matrices and tables start."""
    tied: bool = True
    """Whether the output layer is the token table."""
    vocabulary_multiple: int = 64
    """The token table has a multiple of so many rows."""
    code_vectors: CodeVectorsConfig = field(default_factory=CodeVectorsConfig)
