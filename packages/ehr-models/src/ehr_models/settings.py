"""Settings of this package's components. Nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass
class GPTConfig:
    """GPT-2's decoder without biases; the defaults are of a size for a laptop."""

    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "modern": {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True},
        "experts": {"num_experts": 4},
        "one expert a token, in every second block": {"num_experts": 3, "top_k": 1, "stride": 2},
        "positions from a column": {"positions": "rotary", "position_column": "age_days"},
    }
    """What conformance checks try besides the defaults."""
    name: str = "gpt"
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads; ``width`` is a multiple of it."""
    width: int = 64
    """Width D of the hidden states."""
    mlp_ratio: int = 4
    """Width of the MLP's inner layer, as a multiple of ``width``; two thirds of it where one half gates the other."""
    context_length: int = 256
    """The longest window that the model can read."""
    dropout: float = 0.0
    """Dropout of embeddings, attention weights and both residual branches, in training only."""
    norm: str = "layer"
    """``layer``: LayerNorm without bias; ``rms``: RMSNorm."""
    mlp: str = "gelu"
    """``gelu``: two layers; ``swiglu``: three, one of them a gate, with as many parameters."""
    positions: str = "learned"
    """``learned``: a vector for each place in the window; ``rotary``: queries and keys are rotated by their place."""
    position_column: str = ""
    """With rotary positions: the column of the token store to take them from, such as the age in days, in place of
    the place in the window."""
    rotary_base: float = 10000.0
    """Wavelengths go from 2 pi to this many times 2 pi places, or units of the column."""
    qk_norm: bool = False
    """Normalise queries and keys, which keeps attention scores small."""
    num_experts: int = 0
    """Experts in the place of an MLP; 0: none."""
    top_k: int = 2
    """Experts that each token goes to."""
    stride: int = 1
    """Every so many blocks the MLP is replaced by experts, the last one of each group."""
    noisy_router: bool = False
    """Draw experts by their scores in training, instead of taking the best."""
    balance_weight: float = 0.01
    """Weight of the loss that has experts used alike, summed over layers; in training only."""
    router_z_weight: float = 0.001
    """Weight of the loss that keeps the router's scores small, summed over layers; in training only."""
