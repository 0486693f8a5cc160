"""The parts that networks are put together from. Shapes: B rows, T positions, D width."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from ehr_models.layers.attention import ResidualLinear, Rotation, SelfAttention
from ehr_models.layers.layout import Layout
from ehr_models.layers.moe import MoE


class Embeddings(nn.Module):
    """Token vectors plus learned position vectors; no position vectors for a context length of 0."""

    def __init__(self, num_rows: int, context_length: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.token = nn.Embedding(num_rows, width)
        self.position = nn.Embedding(context_length, width) if context_length else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, token_BT: Tensor, position_BT: Tensor) -> Tensor:
        """Two (B, T) int64 tensors to (B, T, D)."""
        x_BTD = self.token(token_BT)
        return self.dropout(x_BTD if self.position is None else x_BTD + self.position(position_BT))


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


class GatedMLP(nn.Module):
    """SwiGLU: one product gates another (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, width: int, inner: int, bias: bool = False):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = ResidualLinear(inner, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.down_proj(functional.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "layer": lambda width, epsilon: nn.LayerNorm(width, eps=epsilon, bias=False),
    "rms": lambda width, epsilon: nn.RMSNorm(width, eps=epsilon),
}
MLPS: dict[str, Callable[[int, int], nn.Module]] = {"gelu": MLP, "swiglu": GatedMLP}


class Block(GradientCheckpointingLayer):
    """A decoder's layer: attention, then MLP or experts; each reads a normalised copy and adds to the residual stream.

    ``config`` is an `ehr_models.gpt.EhrGPTConfig`.
    """

    def __init__(self, config: Any, with_experts: bool = False):
        super().__init__()
        D, epsilon = config.hidden_size, config.layer_norm_eps
        make_norm = NORMS[config.norm]
        self.attention_norm = make_norm(D, epsilon)
        self.attention = SelfAttention(D, config.num_attention_heads, config.dropout, qk_norm=config.qk_norm)
        self.mlp_norm = make_norm(D, epsilon)
        if with_experts:
            self.mlp: nn.Module = MoE(
                D, config.moe_intermediate_size, config.num_experts, config.num_experts_per_tok, config.noisy_router
            )
        else:
            self.mlp = MLPS[config.mlp](D, config.intermediate_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTD: Tensor, layout: Layout, rotation: Rotation | None = None, share_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) to (B, T, D), and the statistics of `ehr_models.layers.moe.MoE` from a layer with experts."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), layout, rotation))
        y_BTD, statistics = self.mlp_norm(x_BTD), None
        if isinstance(self.mlp, MoE):
            y_BTD, statistics = self.mlp(y_BTD, share_N)
        else:
            y_BTD = self.mlp(y_BTD)
        return x_BTD + self.dropout(y_BTD), statistics
