"""Settings of this package's components. Nothing heavy is imported here."""

from dataclasses import dataclass


@dataclass
class GPTConfig:
    """GPT-2's decoder without biases; the defaults are of a size for a laptop."""

    name: str = "gpt"
    num_layers: int = 3
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads; ``width`` is a multiple of it."""
    width: int = 96
    """Width D of the hidden states."""
    mlp_ratio: int = 4
    """Width of the MLP's inner layer, as a multiple of ``width``."""
    context_length: int = 256
    """Learned positions: the longest window that the model can read."""
    dropout: float = 0.0
    """Dropout of embeddings, attention weights and both residual branches, in training only."""


@dataclass
class NextTokenConfig:
    """Predict each next token of a window."""

    name: str = "next_token"


@dataclass
class ClassificationConfig:
    """A binary head, trained together with the model."""

    name: str = "classification"
    dropout: float = 0.1
    """Dropout before the head, in training only."""
    pooling: str = "last"
    """``last``: the state of a sample's last visible token; ``mean``: the mean over all of its visible tokens."""
