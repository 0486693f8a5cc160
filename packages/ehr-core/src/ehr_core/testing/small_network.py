"""A small network that satisfies the contract of models and no more, for checks of objectives and adapters.

It is what a stranger might write: causal attention within segments, learned positions, an output layer of its own.

Shapes: B rows, T positions, D width, V vocabulary.
"""

# mypy: disable-error-code="no-untyped-call"
# transformers has classes whose methods have no types.

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput


class SmallConfig(PretrainedConfig):
    """Shape of `SmallNetwork`."""

    model_type = "ehr-small-network"

    def __init__(self, vocab_size: int = 64, width: int = 32, positions: int = 64, **kwargs: Any):
        self.vocab_size, self.width, self.positions = vocab_size, width, positions
        super().__init__(**kwargs)


class Attention(nn.Module):
    """One head."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BTD: Tensor, mask_BTT: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        out: Tensor = self.output(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_BTT))
        return out


class Block(nn.Module):
    """Attention, then two linear layers, each beside the residual stream."""

    def __init__(self, width: int):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x_BTD: Tensor, mask_BTT: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), mask_BTT)
        out: Tensor = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return out


class SmallNetwork(PreTrainedModel):
    """See the module."""

    config_class = SmallConfig
    provides = ("causal",)

    def __init__(self, config: SmallConfig):
        super().__init__(config)
        self.width, self.max_positions = config.width, config.positions
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(2))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.vocab_size)
        self.post_init()

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, segment_ids: Tensor | None = None, **columns: Any
    ) -> ModelOutput:
        """(B, T) ids to hidden states (B, T, D); further columns are not used."""
        T = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(T, device=input_ids.device).expand(input_ids.shape)
        segment_BT = torch.ones_like(input_ids) if segment_ids is None else segment_ids
        mask_BTT = (segment_BT[:, :, None] == segment_BT[:, None]) & torch.ones(T, T, dtype=torch.bool).tril()
        x_BTD = self.token(input_ids) + self.position(position_ids)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_BTT)
        return ModelOutput(last_hidden_state=self.norm(x_BTD), losses={})

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        logits: Tensor = self.output(hidden)
        return logits


def small_network(vocabulary_size: int) -> Any:
    """One from a fixed seed, in evaluation mode, with weights that are large enough to tell tokens apart."""
    torch.manual_seed(0)
    model: Any = SmallNetwork(SmallConfig(vocabulary_size))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()
