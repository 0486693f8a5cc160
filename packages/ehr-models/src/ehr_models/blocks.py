"""The parts that networks are put together from. Shapes: B rows, T positions, D width."""

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ehr_models.attention import ResidualLinear, SelfAttention
from ehr_models.layout import Layout


class Embeddings(nn.Module):
    """Token vectors plus learned position vectors."""

    def __init__(self, num_rows: int, context_length: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.token = nn.Embedding(num_rows, width)
        self.position = nn.Embedding(context_length, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, token_BT: Tensor, position_BT: Tensor) -> Tensor:
        """Two (B, T) int64 tensors to (B, T, D)."""
        return self.dropout(self.token(token_BT) + self.position(position_BT))


class MLP(nn.Module):
    """Two linear layers with GELU (the exact one) in between."""

    def __init__(self, width: int, inner: int, bias: bool = False):
        super().__init__()
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.activation: nn.Module = nn.GELU()
        self.down_proj = ResidualLinear(inner, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.down_proj(self.activation(self.up_proj(x_BTD)))


class Block(GradientCheckpointingLayer):
    """Attention, then MLP; each reads a normalised copy and adds to the residual stream (pre-LN)."""

    def __init__(self, width: int, num_heads: int, inner: int, dropout: float, epsilon: float, bias: bool = False):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=epsilon, bias=bias)
        self.attention = SelfAttention(width, num_heads, dropout, bias)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon, bias=bias)
        self.mlp = MLP(width, inner, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, layout: Layout) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), layout))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
