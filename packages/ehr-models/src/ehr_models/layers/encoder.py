"""The block of an encoder: BERT's, with LayerNorm after each residual sum, or the same with LayerNorm before.

Shapes: B rows, T positions, D width.
"""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ehr_models.layers.attention import Rotation, SelfAttention
from ehr_models.layers.blocks import MLP
from ehr_models.layers.layout import Layout

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class EncoderBlock(GradientCheckpointingLayer):
    """Attention, then MLP, each beside the residual stream."""

    def __init__(self, config: Any):
        super().__init__()
        D, epsilon = config.hidden_size, config.layer_norm_eps
        self.pre_norm = config.pre_norm
        self.attention = SelfAttention(D, config.num_attention_heads, config.attention_dropout, bias=True)
        self.attention_norm = nn.LayerNorm(D, eps=epsilon)
        self.mlp = MLP(D, config.intermediate_size, bias=True)
        self.mlp.activation = ACTIVATIONS[config.hidden_act]()
        self.mlp_norm = nn.LayerNorm(D, eps=epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, layout: Layout, rotation: Rotation | None = None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        if self.pre_norm:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), layout, rotation))
            return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, layout, rotation)))
        return self.mlp_norm(x_BTD + self.dropout(self.mlp(x_BTD)))
