"""``gpt``: the decoder of GPT-2 without biases, as ETHOS and EHR_FM use it.

Pre-LN blocks, LayerNorm without bias, exact GELU, learned positions, output layer tied to the token table (Radford et
al. 2019, "Language Models are Unsupervised Multitask Learners"; Renc et al. 2024, "Zero shot health trajectory
prediction using transformer"). Rows may be packed: a position sees what is before it in its own segment only.

Shapes: B rows, T positions, D width, V vocabulary, P rows of the token table.
"""

from collections.abc import Sequence
from typing import Any

from ehr_core.errors import ConfigError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from ehr_models.base import EhrConfig, EhrModel, EhrOutput
from ehr_models.blocks import Block, Embeddings
from ehr_models.layout import make_layout
from ehr_models.settings import GPTConfig


class EhrGPTConfig(EhrConfig):
    """Hugging Face configuration of `GPT`."""

    model_type = "ehr-gpt"

    def __init__(self, **kwargs: Any):  # a config class without its own would be given a dataclass's
        super().__init__(**kwargs)


class GPT(EhrModel):
    """The network; see the module."""

    config_class: type[EhrConfig] = EhrGPTConfig
    causal = True

    def __init__(self, config: EhrGPTConfig):
        super().__init__(config)
        D, epsilon = config.hidden_size, config.layer_norm_eps
        self.embeddings = Embeddings(self.num_rows, config.max_position_embeddings, D, config.dropout)
        self.blocks = nn.ModuleList(
            Block(D, config.num_attention_heads, config.intermediate_size, config.dropout, epsilon)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(D, eps=epsilon, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **columns: Any,
    ) -> EhrOutput:
        """(B, T) int64 ids to hidden states (B, T, D); further columns are not used.

        ``segment_ids`` number the windows in a row, 0 is padding; without them every row is one window, less what
        ``attention_mask`` (1 and 0) leaves out. With a ``cache`` (see `ehr_models.cache`) it says what the rows go on
        from. Raises DataError for ids or positions out of range.
        """
        position_BT, segment_BT = self.prepare(input_ids, position_ids, segment_ids, attention_mask)
        head_width = self.config.hidden_size // self.config.num_attention_heads
        if cache is None:
            layout = make_layout(segment_BT, True, head_width, self.training and self.config.dropout > 0)
            layouts = [layout] * len(self.blocks)
        else:
            layouts = cache.layouts()
        x_BTD = self.embeddings(input_ids, position_BT)
        for block, layout in zip(self.blocks, layouts, strict=True):
            x_BTD = block(x_BTD, layout)
        return EhrOutput(last_hidden_state=self.norm(x_BTD), losses={})


class GPTForCausalLM(GPT):
    """The same network and tensors for callers who expect logits, and a mean loss where they give labels."""

    def forward(  # type: ignore[override]  # another kind of output is what the class is for
        self, input_ids: Tensor, *args: Any, labels: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutput:
        """Logits (B, T, P); ``labels`` (B, T) are not shifted yet, and -100 is left out of the loss."""
        hidden_BTD = super().forward(input_ids, *args, **kwargs).last_hidden_state
        assert hidden_BTD is not None
        logits_BTP = self.lm_logits(hidden_BTD)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits_BTP[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits_BTP)


def build(settings: GPTConfig, vocabulary_size: int, columns: Sequence[str] = ()) -> GPT:
    """A new `GPT`. It reads tokens only, so any ``columns`` do. Raises ConfigError for a shape that cannot be."""
    if min(settings.num_layers, settings.num_heads, settings.width, settings.mlp_ratio, settings.context_length) < 1:
        raise ConfigError("model: num_layers, num_heads, width, mlp_ratio and context_length must be at least 1")
    if not 0 <= settings.dropout < 1:
        raise ConfigError(f"model.dropout is {settings.dropout}; it must be at least 0 and below 1")
    return GPT(
        EhrGPTConfig(
            vocab_size=vocabulary_size,
            hidden_size=settings.width,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            intermediate_size=settings.mlp_ratio * settings.width,
            max_position_embeddings=settings.context_length,
            dropout=settings.dropout,
        )
    )


AutoConfig.register(EhrGPTConfig.model_type, EhrGPTConfig, exist_ok=True)
AutoModel.register(EhrGPTConfig, GPT, exist_ok=True)
AutoModelForCausalLM.register(EhrGPTConfig, GPTForCausalLM, exist_ok=True)
