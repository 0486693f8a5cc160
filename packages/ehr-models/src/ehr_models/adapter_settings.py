"""Settings of adapters. Nothing heavy is imported here."""

from dataclasses import dataclass, replace


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
    """Train the token table as well, and keep it with the adapter; for vocabularies that have grown."""


PRESETS = {
    "lora": AdapterConfig(),
    "lora_all": AdapterConfig(rank=16, alpha=32, targets="all"),
    "dora": AdapterConfig(dora=True),
    "rslora": AdapterConfig(rank=64, alpha=16, targets="all", rslora=True),
}
"""Settings by name; `preset` gives a copy."""


def preset(name: str) -> AdapterConfig:
    """A copy of a preset, to change. KeyError for a name that is none."""
    return replace(PRESETS[name])
