"""Settings of adapters. Nothing heavy is imported here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ehr_core.errors import ConfigError


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


PRESETS = {
    "lora": AdapterConfig(),
    "lora_all": AdapterConfig("lora_all", rank=16, alpha=32, targets="all"),
    "dora": AdapterConfig("dora", dora=True),
    "rslora": AdapterConfig("rslora", rank=64, alpha=16, targets="all", rslora=True),
}
"""Settings by name; `preset` gives a copy."""


def preset(name: str) -> AdapterConfig:
    """A copy of a preset, to change. KeyError for a name that is none."""
    return replace(PRESETS[name])


def resolve(asked: str | Mapping[str, Any]) -> AdapterConfig:
    """A preset by its name, or one by the ``name`` in a mapping (``lora`` when there is none) with changed settings.

    Raises ConfigError for an unknown name or setting, or a value of another type.
    """
    changes = {"name": asked} if isinstance(asked, str) else {"name": "lora", **asked}
    base = PRESETS.get(changes["name"])
    if base is None:
        raise ConfigError(
            f"no adapter is named {changes['name']!r}, and no folder with an adapter.json is called so; "
            f"allowed: {', '.join(PRESETS)}"
        )
    defaults = asdict(base)
    for key in changes:
        if key not in defaults:
            raise ConfigError(f"adapter has no setting {key!r}; allowed: {', '.join(defaults)}")
    check_types(changes)
    return replace(base, **changes)


def check_types(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting's value of another type than its default's."""
    for key, value in values.items():
        kind = type(getattr(AdapterConfig, key))
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ConfigError(f"adapter.{key} is {value!r}; it must be of type {kind.__name__}")
