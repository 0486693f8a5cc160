"""The block of an encoder: BERT's, with LayerNorm after each residual sum, or the same with LayerNorm before.

Shapes: B rows, T positions, D width.
"""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ehr_models.attention import SelfAttention, attend
from ehr_models.blocks import MLP
from ehr_models.layout import Layout
from ehr_models.rotary import rotate

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
Turn = tuple[Tensor, Tensor]


class EncoderAttention(SelfAttention):
    """Self-attention whose queries and keys may be turned by their positions."""

    def forward(self, x_BTD: Tensor, layout: Layout, turn: Turn | None = None) -> Tensor:  # type: ignore[override]
        """(B, T, D) to (B, T, D)."""
        heads = (*x_BTD.shape[:2], self.num_heads, -1)
        q, k, v = (project(x_BTD).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        out = attend(q, k, v, layout, self.dropout if self.training else 0.0)
        return self.o_proj(out.flatten(2))


class EncoderBlock(GradientCheckpointingLayer):
    """Attention, then MLP, each beside the residual stream."""

    def __init__(self, config: Any):
        super().__init__()
        D, epsilon = config.hidden_size, config.layer_norm_eps
        self.pre_norm = config.pre_norm
        self.attention = EncoderAttention(D, config.num_attention_heads, config.attention_dropout, bias=True)
        self.attention_norm = nn.LayerNorm(D, eps=epsilon)
        self.mlp = MLP(D, config.intermediate_size, bias=True)
        self.mlp.activation = ACTIVATIONS[config.hidden_act]()
        self.mlp_norm = nn.LayerNorm(D, eps=epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, layout: Layout, turn: Turn | None = None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        if self.pre_norm:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), layout, turn))
            return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, layout, turn)))
        return self.mlp_norm(x_BTD + self.dropout(self.mlp(x_BTD)))
