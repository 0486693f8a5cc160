"""Settings of the model ``hf``. Nothing heavy is imported here."""

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass
class HFConfig:
    """A Hugging Face architecture by name, with weights drawn at random; the defaults are of a size for a laptop."""

    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "qwen3": {"architecture": "qwen3", "overrides": {"num_key_value_heads": 2}},
        "gpt2": {"architecture": "gpt2"},
        "mamba": {"architecture": "mamba", "overrides": {"state_size": 4}},
        "modernbert": {"architecture": "modernbert", "kind": "masked"},
        "bert": {"architecture": "bert", "kind": "masked"},
    }
    """What conformance checks try besides the defaults."""
    name: str = "hf"
    architecture: str = "llama"
    """Model type of transformers: ``llama``, ``qwen2``, ``gpt2``, ``mamba``, ``modernbert``, ..."""
    kind: str = "causal"
    """``causal``: predicts the next token; ``masked``: sees both sides and predicts hidden tokens."""
    num_layers: int = 2
    num_heads: int = 4
    """Attention heads, all with keys and values of their own (``overrides.num_key_value_heads`` for fewer)."""
    width: int = 64
    mlp_width: int = 0
    """Width of the MLP's inner layer; 0: four times ``width``. An architecture that has no such setting ignores it."""
    context_length: int = 256
    """The longest window that the model can read."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Further settings in the architecture's own names, for example ``{rope_parameters: {rope_theta: 500000.0}}``."""
    packing: str = "auto"
    """How windows of one row are kept apart. ``mask``: a block-diagonal mask and restarted positions; ``rows``: every
    window is computed as a row of its own; ``auto``: a mask, where a trial shows that it is exact. An architecture that
    is exact in neither way is refused."""
