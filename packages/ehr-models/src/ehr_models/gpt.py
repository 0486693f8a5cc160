"""``gpt``: the decoder of GPT-2 without biases, as ETHOS and EHR_FM use it, and its modern variants.

Pre-LN blocks, LayerNorm without bias, exact GELU, learned positions, output layer tied to the token table (Radford et
al. 2019, "Language Models are Unsupervised Multitask Learners"; Renc et al. 2024, "Zero shot health trajectory
prediction using transformer"). Settings exchange the parts: RMSNorm, SwiGLU, rotary positions by place or by a column
such as the age, normalised queries and keys, experts (`ehr_models.layers.moe`). Rows may be packed: a position sees
what is before it in its own segment only.

Shapes: B rows, T positions, D width, V vocabulary, P rows of the token table.
"""

from collections.abc import Sequence
from typing import Any

import torch
from ehr_core.errors import ConfigError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from ehr_models.base import EhrConfig, EhrModel, EhrOutput, check_choices
from ehr_models.layers import moe
from ehr_models.layers.blocks import MLPS, NORMS, Block, Embeddings
from ehr_models.layers.cache import KVCache
from ehr_models.layers.rotary import rotation_of
from ehr_models.settings import GPTConfig

CHOICES = {"norm": tuple(NORMS), "mlp": tuple(MLPS), "positions": ("learned", "rotary")}


class EhrGPTConfig(EhrConfig):
    """Hugging Face configuration of `GPT`."""

    model_type = "ehr-gpt"

    def __init__(
        self,
        norm: str = "layer",
        mlp: str = "gelu",
        positions: str = "learned",
        position_column: str = "",
        rotary_base: float = 10000.0,
        qk_norm: bool = False,
        num_experts: int = 0,
        num_experts_per_tok: int = 2,
        moe_intermediate_size: int = 0,
        moe_stride: int = 1,
        noisy_router: bool = False,
        router_aux_loss_coef: float = 0.01,
        router_z_loss_coef: float = 0.001,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.norm, self.mlp, self.qk_norm = norm, mlp, qk_norm
        self.positions, self.position_column, self.rotary_base = positions, position_column, rotary_base
        self.num_experts, self.num_experts_per_tok = num_experts, num_experts_per_tok
        self.moe_intermediate_size, self.moe_stride = moe_intermediate_size, moe_stride
        self.noisy_router = noisy_router
        self.router_aux_loss_coef, self.router_z_loss_coef = router_aux_loss_coef, router_z_loss_coef
        check_choices(self, CHOICES)

    def has_experts(self, index: int) -> bool:
        """Whether block ``index`` has experts: the last of every ``moe_stride`` blocks."""
        return self.num_experts > 0 and (index + 1) % self.moe_stride == 0


class GPT(EhrModel):
    """The network; see the module."""

    config_class: type[EhrConfig] = EhrGPTConfig
    causal = True
    not_adapted = ("router",)
    """Linear layers of the blocks that adapters leave alone: scores of experts are computed in float32."""

    def __init__(self, config: EhrGPTConfig):
        super().__init__(config)
        D, learned = config.hidden_size, config.positions == "learned"
        context_length = config.max_position_embeddings if learned else 0
        self.embeddings = Embeddings(self.num_rows, context_length, D, config.dropout)
        self.blocks = nn.ModuleList(Block(config, config.has_experts(i)) for i in range(config.num_hidden_layers))
        self.norm = NORMS[config.norm](D, config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        output_attentions: bool | None = None,
        **columns: Any,
    ) -> EhrOutput:
        """(B, T) int64 ids to hidden states (B, T, D); of further columns the ``position_column`` is used.

        ``segment_ids`` number the windows in a row, 0 is padding; without them every row is one window, less what
        ``attention_mask`` (1 and 0) leaves out. A ``cache`` (`ehr_models.layers.cache`) says what the rows go on from.
        ``output_attentions`` asks for the attention weights, at the price of the fast kernels. Raises DataError
        for ids or positions out of range.
        """
        position_BT, segment_BT = self.prepare(input_ids, position_ids, segment_ids, attention_mask)
        config = self.config
        head_width = config.hidden_size // config.num_attention_heads
        weights: list[Tensor] | None = None
        if cache is None:
            layout = self.layout(input_ids, segment_BT, config.dropout, output_attentions)
            layouts, weights = [layout] * len(self.blocks), layout.weights
        elif output_attentions:
            raise ConfigError("attention weights are not kept with a cache; ask for them without one")
        else:
            layouts = cache.layouts()
        rotation = None
        if config.positions == "rotary":
            rotation = rotation_of(self.places(position_BT, columns), head_width, config.rotary_base)
        # While a cache is filled nobody asks how experts were used.
        share_N, count = (None, None) if cache or not config.num_experts else moe.shares(input_ids, segment_BT)
        x_BTD, statistics = self.embeddings(input_ids, position_BT), []
        for block, layout in zip(self.blocks, layouts, strict=True):
            x_BTD, of_block = block(x_BTD, layout, rotation, share_N)
            statistics.append(of_block)
        losses, metrics = self.routing([part for part in statistics if part is not None], count)
        kept = None if weights is None else tuple(weights)
        return EhrOutput(last_hidden_state=self.norm(x_BTD), losses=losses, metrics=metrics, attentions=kept)

    @property
    def provides(self) -> tuple[str, ...]:
        """With positions from a column there is no cache: nothing says which value of it a new token has."""
        return super().provides if self.config.position_column else (*super().provides, "cache")

    def make_cache(self, rows: int, length: int) -> KVCache:
        """Room for ``rows`` contexts of up to ``length`` tokens, for generation. Raises ConfigError."""
        if name := self.config.position_column:
            raise ConfigError(f"the model takes positions from the column {name!r}, which new tokens do not have")
        return KVCache(self.config.num_hidden_layers, rows, length)

    def routing(self, statistics: list[Tensor], count: Tensor | None) -> tuple[moe.Pairs, moe.Pairs]:
        """Losses (in training) and figures of the layers with experts; empty where there are none."""
        if count is None or not statistics:
            return {}, {}
        config = self.config
        losses, metrics = moe.summarize(
            torch.stack(statistics), count, config.router_aux_loss_coef, config.router_z_loss_coef
        )
        return losses if self.training else {}, metrics

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, moe.ExpertLinear):
            init.normal_(module.weight, mean=0.0, std=moe.start_std(module, self.config.num_hidden_layers))
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)


class GPTForCausalLM(GPT):
    """The same network and tensors for callers who expect logits, and a mean loss where they give labels."""

    def forward(  # type: ignore[override]  # another kind of output is what the class is for
        self, input_ids: Tensor, *args: Any, labels: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutput:
        """Logits (B, T, P); ``labels`` (B, T) are not shifted yet, and -100 is left out of the loss.

        In training the losses of experts are part of the loss.
        """
        output = super().forward(input_ids, *args, **kwargs)
        hidden_BTD = output.last_hidden_state
        assert hidden_BTD is not None
        logits_BTP = self.lm_logits(hidden_BTD)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits_BTP[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
            for value, count in (output.losses or {}).values():
                loss = loss + value / count
        return CausalLMOutput(loss=loss, logits=logits_BTP, attentions=output.attentions)


SIZES = ("num_layers", "num_heads", "width", "mlp_ratio", "context_length", "stride")


def check(settings: GPTConfig, columns: Sequence[str] = ()) -> None:
    """Raise ConfigError for settings that cannot be."""
    s = settings
    for name in SIZES:
        if getattr(s, name) < 1:
            raise ConfigError(f"model.{name} is {getattr(s, name)}; it must be at least 1")
    if not 0 <= s.dropout < 1:
        raise ConfigError(f"model.dropout is {s.dropout}; it must be at least 0 and below 1")
    if s.width % s.num_heads:
        raise ConfigError(f"model.width is {s.width}; it must be a multiple of model.num_heads, {s.num_heads}")
    if s.position_column and s.positions != "rotary":
        raise ConfigError(f"model.position_column={s.position_column} needs model.positions=rotary")
    if s.position_column and s.position_column not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise ConfigError(f"model.position_column is {s.position_column!r}; columns of the token store: {known}")
    check_experts(s)


def check_experts(s: GPTConfig) -> None:
    """Raise ConfigError for experts that cannot be."""
    if s.num_experts < 0:
        raise ConfigError(f"model.num_experts is {s.num_experts}; give 0 for a model without experts")
    if s.num_experts and not 1 <= s.top_k <= s.num_experts:
        raise ConfigError(f"model.top_k is {s.top_k}; it must be at least 1 and at most num_experts, {s.num_experts}")
    if s.num_experts and s.stride > s.num_layers:
        raise ConfigError(f"model.stride is {s.stride}, so none of the {s.num_layers} layers would have experts")
    if min(s.balance_weight, s.router_z_weight) < 0:
        raise ConfigError("model.balance_weight and model.router_z_weight must not be negative")


def build(settings: GPTConfig, vocabulary_size: int, columns: Sequence[str] = ()) -> GPT:
    """A new `GPT`; it reads tokens, and the ``position_column`` if there is one. Raises ConfigError."""
    check(settings, columns)
    s = settings
    gated = moe.gated_width(s.width, s.mlp_ratio)
    config = EhrGPTConfig(
        vocab_size=vocabulary_size,
        hidden_size=s.width,
        num_hidden_layers=s.num_layers,
        num_attention_heads=s.num_heads,
        intermediate_size=gated if s.mlp == "swiglu" else s.mlp_ratio * s.width,
        max_position_embeddings=s.context_length,
        dropout=s.dropout,
        norm=s.norm,
        mlp=s.mlp,
        positions=s.positions,
        position_column=s.position_column,
        rotary_base=s.rotary_base,
        qk_norm=s.qk_norm,
        num_experts=s.num_experts,
        num_experts_per_tok=s.top_k,  # transformers refuses top_k in a configuration: it is one of generation's
        moe_intermediate_size=gated if s.num_experts else 0,
        moe_stride=s.stride,
        noisy_router=s.noisy_router,
        router_aux_loss_coef=s.balance_weight,
        router_z_loss_coef=s.router_z_weight,
    )
    return GPT(config)


AutoConfig.register(EhrGPTConfig.model_type, EhrGPTConfig, exist_ok=True)
AutoModel.register(EhrGPTConfig, GPT, exist_ok=True)
AutoModelForCausalLM.register(EhrGPTConfig, GPTForCausalLM, exist_ok=True)
