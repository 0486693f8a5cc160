"""``bert``: a bidirectional encoder on the columns of a token store, exact on packed rows.

BERT's blocks and output layer (Devlin et al. 2019); BEHRT, ExMed-BERT and Geneformer are settings of it. A position
sees the whole of its own segment and nothing else.

Shapes: B rows, T positions, D width, E width of embeddings, V vocabulary, P rows of the token table.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ehr_core.errors import ConfigError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
from transformers import initialization as init
from transformers.modeling_outputs import MaskedLMOutput

from ehr_models import code_vectors
from ehr_models.base import EhrConfig, EhrModel, EhrOutput, check_choices
from ehr_models.bert_settings import BertConfig
from ehr_models.layers.embeddings import SumEmbeddings
from ehr_models.layers.encoder import ACTIVATIONS, EncoderBlock
from ehr_models.layers.rotary import rotation_of

POSITIONS = ("learned", "sinusoidal", "rotary", "none")
STARTS: dict[str, Callable[..., Any]] = {
    "orthogonal": init.orthogonal_,
    "xavier": init.xavier_uniform_,
    "kaiming": init.kaiming_uniform_,
}


CHOICES = {"hidden_act": tuple(ACTIVATIONS), "positions": POSITIONS, "weight_init": ("normal", *STARTS)}


class EhrBertConfig(EhrConfig):
    """Hugging Face configuration of `Bert`; `ehr_models.bert_settings` says what the fields mean."""

    model_type = "ehr-bert"

    def __init__(
        self,
        embedding_size: int | None = None,
        hidden_act: str = "gelu",
        attention_dropout: float = 0.0,
        pre_norm: bool = False,
        layer_norm_eps: float = 1e-12,
        positions: str = "learned",
        position_column: str = "",
        rotary_base: float = 10000.0,
        columns: dict[str, dict[str, Any]] | None = None,
        type_vocab_size: int = 0,
        weight_init: str = "normal",
        tied: bool = True,
        **kwargs: Any,
    ):
        super().__init__(layer_norm_eps=layer_norm_eps, **kwargs)
        self.embedding_size = embedding_size or self.hidden_size
        self.hidden_act, self.attention_dropout, self.pre_norm = hidden_act, attention_dropout, pre_norm
        self.positions, self.position_column, self.rotary_base = positions, position_column, rotary_base
        # In the order that config.json gives them back: a sum in another order is another to the last bit.
        self.columns = dict(sorted((columns or {}).items()))
        self.type_vocab_size = type_vocab_size
        self.weight_init, self.tied = weight_init, tied
        check_choices(self, CHOICES)


class Head(nn.Module):
    """BERT's output layer up to the product with the table, and a bias for each token."""

    def __init__(self, config: EhrBertConfig, num_rows: int):
        super().__init__()
        width = config.embedding_size if config.tied else config.hidden_size
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder = None if config.tied else nn.Linear(width, num_rows, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) to what is multiplied with the table."""
        return self.norm(self.activation(self.dense(hidden)))


class Bert(EhrModel):
    """The network; see the module."""

    config_class: type[EhrConfig] = EhrBertConfig
    _no_split_modules = ["EncoderBlock"]  # noqa: RUF012 - transformers' own spelling
    causal = False
    embeddings: SumEmbeddings  # type: ignore[assignment]  # it too has ``token``

    def __init__(self, config: EhrBertConfig):
        super().__init__(config)
        self.embeddings = SumEmbeddings(config, self.num_rows)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_hidden_layers))
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pre_norm else None
        self.norm = norm or nn.Identity()
        self.head = Head(config, self.num_rows)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        **columns: Any,
    ) -> EhrOutput:
        """(B, T) int64 ids to hidden states (B, T, D); columns that the model does not embed are not used.

        ``segment_ids`` number the windows in a row, 0 is padding; without them every row is one window, less what
        ``attention_mask`` (1 and 0) leaves out. ``output_attentions`` asks for the attention weights, at the price of
        the fast kernels. Raises DataError for ids, positions or columns that do not fit.
        """
        config = self.config
        position_BT, segment_BT = self.prepare(input_ids, position_ids, segment_ids, attention_mask)
        head_width = config.hidden_size // config.num_attention_heads
        layout = self.layout(input_ids, segment_BT, config.attention_dropout, output_attentions)
        place_BT = self.places(position_BT, columns)
        rotation = rotation_of(place_BT, head_width, config.rotary_base) if config.positions == "rotary" else None
        x_BTD = self.embeddings(input_ids, place_BT, columns)
        for block in self.blocks:
            x_BTD = block(x_BTD, layout, rotation)
        weights = tuple(layout.weights) if layout.weights is not None else None
        return EhrOutput(last_hidden_state=self.norm(x_BTD), losses={}, attentions=weights)

    def output_layers(self) -> list[nn.Module]:
        """The head, for its biases and perhaps a table of its own."""
        return [self.head]

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., P); padded ids are at minus infinity, so that they are never predicted or drawn."""
        x = self.head(hidden)
        if self.head.decoder is not None:
            return self.logits_over(x, self.head.decoder.weight, self.head.bias)
        table = self.output_table()
        return self.logits_over(code_vectors.into_table(table, x), table.weight, self.head.bias)

    @property
    def scales_residual(self) -> bool:
        """BERT starts all matrices alike; with LayerNorm in front, what writes to the stream starts smaller."""
        return bool(self.config.pre_norm)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        start = STARTS.get(self.config.weight_init)
        if start is None or isinstance(module, code_vectors.Projection):
            return
        if isinstance(module, nn.Linear | nn.Embedding):
            with code_vectors.keeping(module):
                start(module.weight)

    @torch.no_grad()
    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As `EhrModel.resize_token_embeddings`; the output layer's rows and biases follow."""
        kept = self.config.vocab_size
        table = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        kept = min(kept, self.config.vocab_size)
        bias_V = self.head.bias.new_zeros(self.config.vocab_size)
        bias_V[:kept] = self.head.bias[:kept]
        self.head.bias = nn.Parameter(bias_V, self.head.bias.requires_grad)
        decoder = self.head.decoder
        if decoder is not None:
            old_PD = decoder.weight
            new_PD = old_PD.new_empty(self.num_rows, old_PD.shape[1]).normal_(0.0, self.config.initializer_range)
            new_PD[:kept] = old_PD[:kept]
            decoder.weight = nn.Parameter(new_PD, old_PD.requires_grad)
            decoder.out_features = self.num_rows
        return table


class BertForMaskedLM(Bert):
    """The same network and tensors for callers who expect logits, and a mean loss where they give labels."""

    def forward(  # type: ignore[override]  # another kind of output is what the class is for
        self, input_ids: Tensor, *args: Any, labels: Tensor | None = None, **kwargs: Any
    ) -> MaskedLMOutput:
        """Logits (B, T, P); ``labels`` (B, T) are the tokens to predict, and -100 is left out of the loss."""
        output = super().forward(input_ids, *args, **kwargs)
        hidden_BTD = output.last_hidden_state
        assert hidden_BTD is not None
        logits_BTP = self.lm_logits(hidden_BTD)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits_BTP.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits_BTP, attentions=output.attentions)


def check(settings: BertConfig) -> None:
    """Raise ConfigError for a shape that cannot be."""
    s = settings
    if min(s.num_layers, s.num_heads, s.width, s.mlp_width, s.context_length, s.vocabulary_multiple) < 1:
        raise ConfigError(
            "model: num_layers, num_heads, width, mlp_width, context_length and vocabulary_multiple must be at least 1"
        )
    if s.width % s.num_heads:
        raise ConfigError(f"model.width is {s.width}; it must be a multiple of model.num_heads, {s.num_heads}")
    for name, share in (("dropout", s.dropout), ("attention_dropout", s.attention_dropout)):
        if not 0 <= share < 1:
            raise ConfigError(f"model.{name} is {share}; it must be at least 0 and below 1")
    if s.norm not in ("post", "pre"):
        raise ConfigError(f"model.norm is {s.norm!r}; it must be one of post, pre")
    if not s.epsilon > 0:
        raise ConfigError(f"model.epsilon is {s.epsilon}; it must be above 0")


def make_config(settings: BertConfig, vocabulary_size: int, columns: Sequence[str] = ()) -> EhrBertConfig:
    """The configuration for a vocabulary and a store's columns; says on stderr which wanted columns are not there."""
    check(settings)
    wanted = {name: spec for name, spec in settings.columns.items() if spec.size}
    position_column = settings.position_column if settings.positions != "none" else ""
    missing = sorted({*wanted, *filter(None, [position_column])} - set(columns))
    if missing:
        print(f"model {settings.name}: the token store has no {', '.join(missing)}; going on without", file=sys.stderr)
    s = settings
    return EhrBertConfig(
        vocab_size=vocabulary_size,
        hidden_size=s.width,
        num_hidden_layers=s.num_layers,
        num_attention_heads=s.num_heads,
        intermediate_size=s.mlp_width,
        max_position_embeddings=s.context_length,
        dropout=s.dropout,
        attention_dropout=s.attention_dropout,
        layer_norm_eps=s.epsilon,
        pad_vocab_to_multiple_of=s.vocabulary_multiple,
        embedding_size=s.embedding_width or s.width,
        hidden_act=s.activation,
        pre_norm=s.norm == "pre",
        positions=s.positions,
        position_column=position_column if position_column in columns else "",
        rotary_base=s.rotary_base,
        columns={
            name: {"size": spec.size, "transform": spec.transform, "unit": spec.unit}
            for name, spec in wanted.items()
            if name in columns
        },
        type_vocab_size=s.token_types,
        weight_init=s.weight_init,
        tied=s.tied,
    )


def build(settings: BertConfig, vocabulary_size: int, columns: Sequence[str] = ()) -> Bert:
    """A new `Bert` that embeds those of ``columns`` that the settings name. Raises ConfigError."""
    config = make_config(settings, vocabulary_size, columns)
    return code_vectors.started(Bert, config, settings.code_vectors)


AutoConfig.register(EhrBertConfig.model_type, EhrBertConfig, exist_ok=True)
AutoModel.register(EhrBertConfig, Bert, exist_ok=True)
AutoModelForMaskedLM.register(EhrBertConfig, BertForMaskedLM, exist_ok=True)
