"""Settings of adapters. Nothing heavy is imported here."""

from dataclasses import dataclass


@dataclass
class AdapterConfig:
    """Low-rank adapters (Hu et al. 2021, "LoRA"); the defaults are small and cheap."""

    name: str = "lora"
    rank: int = 8
    """Rank r of the product that is added to each adapted layer."""
    alpha: int = 16
    """The product is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout of what goes into the product, in training only."""
    targets: str = "attention"
    """Linear layers of the blocks to adapt: ``attention``, ``feed_forward`` or ``all``."""
    dora: bool = False
    """Learn size and direction of weights apart (Liu et al. 2024, "DoRA")."""
    rslora: bool = False
    """Scale by alpha / sqrt(r), which suits high ranks (Kalajdzievski 2023)."""
    embeddings: bool = False
    """Train the token table and the output layer as well, and keep them with the adapter; for vocabularies that have
    grown."""
