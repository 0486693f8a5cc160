"""What flows between loader, model, objective and trainer. Tensors are annotated only: torch is never imported here.

Shapes: B rows, T positions, N samples, D width, V vocabulary. A row of a batch may hold several segments, one window
of one subject each, packed side by side; nothing may attend or be predicted across a segment's border.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Packed windows of tokens, with labels where a task has them."""

    token_BT: Tensor
    """int64 ids; PAD (0) where ``segment_BT`` is 0."""
    position_BT: Tensor
    """int64, counted from 0 within each segment."""
    segment_BT: Tensor
    """int64; 0 is padding, 1, 2, ... number the segments of a row from the left."""
    static_BT: Tensor
    """bool; True on the static prefix, whose tokens are given and never predicted."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """Further columns of the token store by name, each (B, T)."""
    label_N: Tensor | None = None
    """float32 labels of the samples of this batch, in the order of ``last_N``: (N,), (N, K) or (N, 2) as the kind of
    outcome has it (`ehr_core.outcomes`)."""
    last_N: Tensor | None = None
    """int64 index into the flattened B*T positions: the last visible token of each sample."""

    def to(self, device: Any, non_blocking: bool = True) -> Batch:
        """The same batch on a device."""

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: move(part) for name, part in value.items()}
            return value if value is None else value.to(device, non_blocking=non_blocking)

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a model's forward, in Hugging Face's spelling, plus ``segment_ids`` and the columns."""
        return {
            "input_ids": self.token_BT,
            "position_ids": self.position_BT,
            "segment_ids": self.segment_BT,
            **self.columns,
        }


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and a count, so that any split over micro-batches and ranks averages to the same number."""

    total: Tensor
    """Scalar with a gradient: the sum over predicted items."""
    count: Tensor
    """Scalar without a gradient: how many items ``total`` sums over."""
    parts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Further (sum, count) pairs to log apart, detached, by name."""
