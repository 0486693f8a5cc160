"""What an encoder reads at each token: its code, its position, and columns of the token store such as age or visit.

Shapes: B rows, T positions, E width of the embeddings, D width of the model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from ehr_core.constants import YEAR_DAYS
from ehr_core.errors import ConfigError, DataError
from torch import Tensor, nn

from ehr_models.layers.rotary import sinusoid

DAYS_IN_1000_YEARS = round(1000 * YEAR_DAYS)
TRANSFORMS = ("index", "clamp", "age")


class ColumnEmbedding(nn.Embedding):
    """A table for one column; see `ehr_models.bert_settings.ColumnConfig` for size, transform and unit."""

    def __init__(self, name: str, width: int, size: int, transform: str, unit: float):
        if transform not in TRANSFORMS:
            raise ConfigError(
                f"model.columns.{name}.transform is {transform!r}; it must be one of {', '.join(TRANSFORMS)}"
            )
        if size < (2 if transform == "age" else 1) or round(unit * 1000) < 1:
            raise ConfigError(f"model.columns.{name}: size {size} with unit {unit} gives no rows to choose from")
        super().__init__(size, width)
        self.name, self.transform, self.unit = name, transform, unit

    def rows(self, value_BT: Tensor) -> Tensor:
        """Rows (B, T) int64 for the column's values. Raises DataError, on CPU, for an index that is no row."""
        if value_BT.is_floating_point():
            raise DataError(f"column {self.name!r} holds fractions; only whole numbers can be embedded")
        value_BT, size = value_BT.long(), self.num_embeddings
        if self.transform == "clamp":
            return value_BT.clamp(0, size - 1)
        if self.transform == "age":
            # In whole numbers, so that a birthday falls into the same bin on every device.
            bin_BT = value_BT * 1000 // round(self.unit * DAYS_IN_1000_YEARS)
            return torch.where(value_BT < 0, size - 1, bin_BT.clamp(0, size - 2))
        if value_BT.device.type == "cpu" and value_BT.numel():
            low, high = (int(value) for value in value_BT.aminmax())
            if low < 0 or high >= size:
                raise DataError(
                    f"column {self.name!r} holds {low if low < 0 else high}, and its table has rows 0 to {size - 1}: "
                    f"give model.columns.{self.name}.size, or transform=clamp"
                )
        return value_BT

    def forward(self, value_BT: Tensor) -> Tensor:
        """(B, T) values to (B, T, E)."""
        return super().forward(self.rows(value_BT))


class SumEmbeddings(nn.Module):
    """LayerNorm of the sum of the vectors of token, columns, token type and position; then, maybe, a linear layer."""

    def __init__(self, config: Any, num_rows: int):
        super().__init__()
        E, D = config.embedding_size, config.hidden_size
        self.token = nn.Embedding(num_rows, E)
        self.columns = nn.ModuleDict({name: ColumnEmbedding(name, E, **spec) for name, spec in config.columns.items()})
        self.token_type = nn.Embedding(config.type_vocab_size, E) if config.type_vocab_size else None
        self.position = nn.Embedding(config.max_position_embeddings, E) if config.positions == "learned" else None
        self.sines = config.positions == "sinusoidal"
        self.norm = nn.LayerNorm(E, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Identity() if E == D else nn.Linear(E, D)

    def forward(self, token_BT: Tensor, place_BT: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Ids, places (whatever positions are taken from) and columns, each (B, T), to (B, T, D)."""
        x_BTE = self.token(token_BT)
        for name, table in self.columns.items():
            if columns.get(name) is None:
                raise DataError(
                    f"the batch has no column {name!r}, which the model embeds; use a store of its own tokenizer"
                )
            x_BTE = x_BTE + table(columns[name])
        if self.token_type is not None:
            types_BT = columns.get("token_type_ids")
            if types_BT is not None and types_BT.device.type == "cpu" and types_BT.numel():
                low, high = (int(value) for value in types_BT.aminmax())
                size = self.token_type.num_embeddings
                if low < 0 or high >= size:
                    raise DataError(f"token_type_ids go from {low} to {high}, and the model has types 0 to {size - 1}")
            x_BTE = x_BTE + self.token_type(torch.zeros_like(token_BT) if types_BT is None else types_BT)
        if self.position is not None:
            x_BTE = x_BTE + self.position(place_BT.clamp(0, self.position.num_embeddings - 1))
        elif self.sines:
            x_BTE = x_BTE + sinusoid(place_BT, x_BTE.shape[-1]).to(x_BTE.dtype)
        return self.projection(self.dropout(self.norm(x_BTE)))
