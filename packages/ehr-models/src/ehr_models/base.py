"""What all networks of this package share: safe loading, a padded tied vocabulary, checks of the input.

Shapes: B rows, T positions, D width, V vocabulary, P rows of the embedding table (V padded to a multiple of 64).
"""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import write_text
from ehr_core.formats.vocabulary import PAD
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from ehr_models import code_vectors
from ehr_models.layers import layout as layouts
from ehr_models.layers.attention import ResidualLinear
from ehr_models.layers.blocks import Embeddings
from ehr_models.layers.layout import positions_of

README = """# {kind}

A model of the ehr workbench. Its ids are those of `vocabulary.json` in the folder `tokenizer` of its run.

```python
from ehr_models import load_model

model = load_model("FOLDER")
```

`AutoModel` of transformers knows it once the package is imported; no code of this folder is run:

```python
import ehr_models.auto
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER")
```
"""


@dataclass
class EhrOutput(ModelOutput):
    """What a network returns."""

    last_hidden_state: Tensor | None = None
    """(B, T, D), after the last norm."""
    losses: dict[str, tuple[Tensor, Tensor]] | None = None
    """Auxiliary losses by name, weighted, as (sum, count); empty for a network that has none."""
    metrics: dict[str, tuple[Tensor, Tensor]] | None = None
    """Figures to log by name, without gradients, as (sum, count)."""
    attentions: tuple[Tensor, ...] | None = None
    """Weights (B, H, T, T) of each layer, with ``output_attentions=True``; those of padding mean nothing."""


def padded_rows(vocabulary_size: int, multiple: int) -> int:
    """V rounded up to a multiple."""
    return math.ceil(vocabulary_size / multiple) * multiple


def check_tokens(token: Tensor, vocabulary_size: int) -> None:
    """Raise DataError, on CPU, for an id that is none; elsewhere a look at the values would wait for the device."""
    if token.device.type != "cpu" or not token.numel():
        return
    low, high = (int(value) for value in token.aminmax())
    if low < 0 or high >= vocabulary_size:
        raise DataError(
            f"a batch holds token id {low if low < 0 else high}, but the model knows ids 0 to {vocabulary_size - 1}: "
            "its tokens were made with another vocabulary; tokenize with the one that the model was trained with"
        )


class EhrConfig(PretrainedConfig):
    """Shape of a transformer, in Hugging Face's names. ``vocab_size`` is V, without the padded rows.

    Of special tokens it knows padding alone, which is 0 in every vocabulary; the others are the vocabulary's to say.
    """

    def __init__(
        self,
        vocab_size: int = 64,
        hidden_size: int = 96,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        intermediate_size: int = 384,
        max_position_embeddings: int = 256,
        dropout: float = 0.0,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        pad_vocab_to_multiple_of: int = 64,
        **kwargs: Any,
    ):
        if vocab_size < 1 or num_attention_heads < 1 or hidden_size % num_attention_heads:
            raise ConfigError(
                f"a model of width {hidden_size} with {num_attention_heads} heads and {vocab_size} tokens cannot be: "
                "the width must be a multiple of the heads and the vocabulary must not be empty"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.dropout = dropout
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.pad_vocab_to_multiple_of = pad_vocab_to_multiple_of
        super().__init__(**({"pad_token_id": PAD, "tie_word_embeddings": True} | kwargs))


def check_choices(config: EhrConfig, allowed: Mapping[str, Iterable[str]]) -> None:
    """Raise ConfigError for a word in a config.json that stands for nothing, and for heads that cannot be rotated."""
    for name, words in allowed.items():
        if getattr(config, name) not in words:
            raise ConfigError(f"{name} is {getattr(config, name)!r}; it must be one of {', '.join(words)}")
    width = config.hidden_size // config.num_attention_heads
    if config.positions == "rotary" and width % 2:
        raise ConfigError(f"rotary positions need heads of an even width, and theirs is {width}")


class EhrModel(PreTrainedModel):
    """Base of the networks. A subclass has ``embeddings.token``, the table that the output layer shares."""

    config_class = EhrConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012 - transformers' own spelling
    causal: bool
    """Whether a position sees only what is before it; others ask `provides`."""
    not_adapted: tuple[str, ...] = ()
    """Names of linear layers within blocks that adapters leave alone."""
    embeddings: Embeddings

    @property
    def width(self) -> int:
        """D."""
        return int(self.config.hidden_size)

    @property
    def max_positions(self) -> int | None:
        """Positions that a window may have."""
        return int(self.config.max_position_embeddings)

    @property
    def provides(self) -> tuple[str, ...]:
        """Names of `ehr_core.protocols.PROVISIONS` that hold for these settings."""
        return ("causal",) if self.causal else ()

    @property
    def num_rows(self) -> int:
        """P, rows of the embedding table."""
        return padded_rows(self.config.vocab_size, self.config.pad_vocab_to_multiple_of)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.embeddings.token

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token table, and with it the output layer."""
        assert isinstance(value, nn.Embedding)
        self.embeddings.token = value

    def get_output_embeddings(self) -> None:
        """None: the output layer is the token table itself, so there is nothing to tie or to save twice."""
        return

    def output_layers(self) -> list[nn.Module]:
        """Modules that grow with the vocabulary, besides the token table."""
        return []

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., P); padded ids are at minus infinity, so that they are never predicted or sampled."""
        table = self.output_table()
        return self.logits_over(code_vectors.into_table(table, hidden), table.weight)

    def output_table(self) -> nn.Embedding:
        """The token table as the output layer reads it. Raises ConfigError for one with a low-rank adapter of peft's.

        Its numbers go into what is read from the table alone, and would be in both only once they are merged.
        """
        table = self.get_input_embeddings()
        if getattr(table, "active_adapters", None) and hasattr(table, "base_layer") and not table.merged:
            raise ConfigError(
                "an adapter on the token table does not reach the output layer, which is the same table; train the "
                "table itself: embeddings=True, or peft's modules_to_save"
            )
        return table

    def logits_over(self, x: Tensor, weight_PD: Tensor, bias_V: Tensor | None = None) -> Tensor:
        """Products (..., P) of (..., D) with the rows of a table, plus a bias for each token."""
        V, P = self.config.vocab_size, weight_PD.shape[0]
        if P == V:
            return functional.linear(x, weight_PD, bias_V)
        # As a bias of the product this costs nothing, where writing into the logits would copy their gradient.
        bias_V = weight_PD.new_zeros(V) if bias_V is None else bias_V
        return functional.linear(x, weight_PD, torch.cat([bias_V, bias_V.new_full((P - V,), -torch.inf)]))

    @property
    def scales_residual(self) -> bool:
        """Whether what writes to the residual stream starts smaller."""
        return True

    def post_init(self) -> None:
        """Transformers' last step of making a model, after the table of tokens is of the kind that is wanted."""
        code_vectors.replace_table(self)
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """GPT-2's: normal with 0.02; what writes to the residual stream is scaled by the number of writers."""
        std = self.config.initializer_range
        if isinstance(module, code_vectors.Projection):
            init.eye_(module.weight)
            return
        if isinstance(module, ResidualLinear) and self.scales_residual:
            std /= math.sqrt(2 * self.config.num_hidden_layers)
        if isinstance(module, nn.Linear | nn.Embedding):
            with code_vectors.keeping(module):
                init.normal_(module.weight, mean=0.0, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)

    @torch.no_grad()
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = False
    ) -> nn.Embedding:
        """Make the vocabulary ``new_num_tokens`` long. Rows that stay keep every bit; new ones are drawn as at first.

        ``mean_resizing`` is there for callers that know transformers' signature and must be False.
        """
        table = self.get_input_embeddings()
        if new_num_tokens is None and pad_to_multiple_of is None:
            return table
        if mean_resizing:
            raise ConfigError(
                "mean_resizing=True is not supported: new rows are drawn with the standard deviation 0.02"
            )
        if pad_to_multiple_of is not None:
            self.config.pad_vocab_to_multiple_of = pad_to_multiple_of
        kept = min(self.config.vocab_size, new_num_tokens or self.config.vocab_size)
        self.config.vocab_size = new_num_tokens or self.config.vocab_size
        old_PD = table.weight
        new_PD = old_PD.new_empty(self.num_rows, old_PD.shape[1]).normal_(0.0, self.config.initializer_range)
        new_PD[:kept] = old_PD[:kept]
        table.weight = nn.Parameter(new_PD, requires_grad=old_PD.requires_grad)
        table.num_embeddings = self.num_rows
        if isinstance(table, code_vectors.CodeEmbedding):
            given_P = table.given.new_zeros(self.num_rows)
            given_P[:kept] = table.given[:kept]
            table.given = given_P
        return table

    def prepare(
        self, token_BT: Tensor, position_BT: Tensor | None, segment_BT: Tensor | None, mask_BT: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Positions (B, T), and segments (B, T) or None for rows that are each one whole segment; the input is checked.

        ``mask_BT`` is Hugging Face's attention mask, 1 for a token and 0 for padding; it counts where there are no
        segments, and positions then count tokens, wherever the padding is. Raises DataError.
        """
        if segment_BT is None and mask_BT is not None:
            if mask_BT.shape != token_BT.shape:
                raise DataError(
                    f"attention_mask is {tuple(mask_BT.shape)}; expected {tuple(token_BT.shape)} of 1 and 0"
                )
            segment_BT = mask_BT.long()
            if position_BT is None:
                position_BT = (segment_BT.cumsum(1) - 1).clamp_min(0)
        if position_BT is None and segment_BT is not None:
            position_BT = positions_of(segment_BT)
        elif position_BT is None:
            T = token_BT.shape[1]
            self._check_position(T - 1)
            position_BT = torch.arange(T, device=token_BT.device).expand(token_BT.shape)
        check_tokens(token_BT, self.config.vocab_size)
        if position_BT.device.type == "cpu" and position_BT.numel():
            lowest, highest = (int(value) for value in position_BT.aminmax())
            if lowest < 0:
                raise DataError(f"a batch has position {lowest}; positions are counted from 0")
            self._check_position(highest)
        return position_BT, segment_BT

    def layout(
        self, token_BT: Tensor, segment_BT: Tensor | None, dropout: float, keep_weights: bool | None
    ) -> layouts.Layout:
        """Who may see whom; with ``keep_weights`` in the way that leaves the attention weights behind."""
        if keep_weights:
            return layouts.keeping_layout(token_BT, segment_BT, self.causal)
        head_width = self.config.hidden_size // self.config.num_attention_heads
        return layouts.make_layout(segment_BT, self.causal, head_width, self.training and dropout > 0)

    def places(self, position_BT: Tensor, columns: Mapping[str, Any]) -> Tensor:
        """What positions are taken from: the place in the window, or the column that the settings name."""
        name = self.config.position_column
        if not name:
            return position_BT
        if columns.get(name) is None:
            raise DataError(f"the batch has no column {name!r}, which the model takes positions from")
        column_BT: Tensor = columns[name]
        return column_BT

    def _check_position(self, highest: int) -> None:
        limit = self.config.max_position_embeddings
        if highest >= limit:
            raise DataError(
                f"a batch goes to position {highest}, but the model has positions 0 to {limit - 1}: "
                f"cut windows to {limit} tokens, or train with a larger model.context_length"
            )

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write ``config.json`` and ``model.safetensors``, and a README.md that says how to load them."""
        super().save_pretrained(save_directory, *args, **kwargs)
        write_text(Path(save_directory) / "README.md", README.format(kind=self.config.model_type))

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load what `save_pretrained` wrote; ``vocab_size=V`` asks for a model of that vocabulary.

        Nothing is fetched unless ``local_files_only=False`` says so. Raises FormatError when the kind of model or the
        vocabulary is another, or tensors are missing, foreign or of another shape (transformers would start those at
        random).
        """
        kwargs.setdefault("local_files_only", True)
        if kwargs["local_files_only"] and not os.path.isdir(path):
            raise FormatError(f"{path} is not a folder; expected a saved model with config.json and model.safetensors")
        kind = cls.config_class.get_config_dict(path, local_files_only=kwargs["local_files_only"])[0].get("model_type")
        if kind != cls.config_class.model_type:
            raise FormatError(
                f"{path} is a model of type {kind!r}, not {cls.config_class.model_type!r}; load it with its own class, "
                "or any with transformers' AutoModel"
            )
        stored = cls.config_class.from_pretrained(path, local_files_only=kwargs["local_files_only"])
        given = kwargs.get("config")
        wanted = kwargs.pop("vocab_size", stored.vocab_size if given is None else given.vocab_size)
        if wanted != stored.vocab_size:
            raise FormatError(
                f"{path} is a model of a vocabulary of {stored.vocab_size} tokens, not {wanted}: use its own run's "
                "tokenizer, or load it as it is and call resize_token_embeddings"
            )
        wants_report = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # so that it is reported here, with the others
        loaded: Any = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        model, report = loaded
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(str(key[0] if isinstance(key, tuple) else key) for key in report[what]):
                raise FormatError(
                    f"{path} does not fit its config.json: {len(names)} {what.replace('_keys', '')} tensors, "
                    f"the first is {names[0]}; save the model again from where it was trained"
                )
        code_vectors.freeze_again(model)
        return (model, report) if wants_report else model
