"""Settings of generation. Nothing heavy is imported here."""

from dataclasses import dataclass, field

LONGEST_DAYS = 10_000_000
"""Sums of a few times that many microseconds fit into int64."""


@dataclass
class GenerationConfig:
    """How trajectories are drawn."""

    draws: int = 16
    """Trajectories of each prompt."""
    max_new_tokens: int = 2048
    """A trajectory ends after so many tokens."""
    horizon_days: float | None = None
    """It ends when more than this has passed since the prediction time, each interval token standing for its mean in
    train; null: no limit."""
    stop_tokens: list[str] = field(default_factory=list)
    """It ends with any of these tokens, named as in vocabulary.json; the end of a timeline always stops."""
    temperature: float = 1.0
    """Logits are divided by it."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that have this share of the probability; 1: from all."""
    never: list[str] = field(default_factory=lambda: ["special"])
    """Kinds of tokens that are never drawn, unless they are to stop at."""
    rows: int = 64
    """Trajectories that are computed side by side; it decides the memory, and nothing about the result."""
    window: int = 0
    """Longest context. A full one goes on with its static prefix and the newer half; 0: as long as the model can."""
    seed: int = 42
    """Each trajectory is decided by the seed, subject, time and number of the draw."""
