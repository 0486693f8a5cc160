"""``hf``: any causal or masked architecture of transformers, by name and settings, without the network.

The network of transformers is ``inner``, untouched; ``model.inner.save_pretrained`` writes it as a model of its own
architecture. Around it is what every model here does: a vocabulary padded to a multiple of 64 whose padded ids cannot
be predicted, windows packed into rows, checks of the input.

Shapes: B rows, T positions, N = B * T, D width, V vocabulary, P rows of the token table, S windows, L longest window.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ehr_core.config import nearest
from ehr_core.errors import ConfigError
from ehr_core.formats.vocabulary import PAD
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
)

from ehr_models import hf_cache
from ehr_models.base import EhrConfig, EhrModel, EhrOutput, padded_rows
from ehr_models.hf_settings import HFConfig
from ehr_models.layers.cache import KVCache
from ehr_models.layers.layout import dense_mask

KINDS: dict[str, tuple[Any, Any]] = {
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "masked": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING),
}
WINDOWS = ("sliding_window", "local_attention", "window_size", "attention_chunk_size", "attention_window")
"""Names under which architectures say how far attention sees; a mask for whole windows would let it see further."""
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm")
"""Architectures whose positions begin after the padding id."""
MAMBA_WEIGHTS = ("x_proj", "dt_proj", "out_proj")
"""Linear layers of Mamba and its relatives whose weights are read without calling them: an adapter would not count."""
TRIAL = (5, 3)
"""Lengths of the windows that a new model is tried with."""


class EhrHFConfig(EhrConfig):
    """Hugging Face configuration of `HFModel`; ``architecture`` holds that of the inner network."""

    model_type = "ehr-hf"

    def __init__(
        self, architecture: dict[str, Any] | None = None, kind: str = "causal", packing: str = "mask", **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.architecture = architecture or {"model_type": "llama"}
        self.kind, self.packing = kind, packing


class HFModel(EhrModel):
    """The network; see the module."""

    config_class: type[EhrConfig] = EhrHFConfig

    def __init__(self, config: EhrHFConfig):
        super().__init__(config)
        self.causal = config.kind == "causal"
        described = dict(config.architecture)
        made = AutoConfig.for_model(described.pop("model_type"), **described)
        self.inner = KINDS[config.kind][0].from_config(made)
        self._no_split_modules = self.inner._no_split_modules
        self.arguments = frozenset(inspect.signature(self.inner.base_model.forward).parameters)
        find_head(self.inner, config.kind)  # says now where there is none
        self.not_adapted = MAMBA_WEIGHTS if "amba" in made.model_type else ()
        self.has_cache: bool | None = None
        """Whether a cache serves; found out with a few tokens when somebody asks."""
        self.post_init()

    @property
    def provides(self) -> tuple[str, ...]:
        """``cache`` where a trial with a few tokens shows that it is exact."""
        if self.has_cache is None:
            self.has_cache = self.causal and hf_cache.serves(self, trial_tokens(self))
        return (*super().provides, "cache") if self.has_cache else super().provides

    def get_input_embeddings(self) -> nn.Embedding:
        """The inner network's token table."""
        table: nn.Embedding = self.inner.get_input_embeddings()
        return table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token table."""
        self.inner.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        **columns: Any,
    ) -> EhrOutput:
        """(B, T) int64 ids to hidden states (B, T, D); further columns are not used.

        ``segment_ids`` number the windows in a row, 0 is padding; without them every row is one window, less what
        ``attention_mask`` (1 and 0) leaves out. A ``cache`` (`ehr_models.layers.cache`) says what the rows go on from.
        Raises DataError for ids or positions out of range.
        """
        position_BT, segment_BT = self.prepare(input_ids, position_ids, segment_ids, attention_mask)
        if cache is not None:
            with hf_cache.in_use(cache, self.inner.config):
                hidden_BTD = self.run(input_ids, position_ids=position_BT)
        elif segment_BT is None:
            hidden_BTD = self.run(input_ids)
        elif self.config.packing == "mask":
            mask = self.fit_mask(dense_mask(segment_BT, self.causal))
            hidden_BTD = self.run(input_ids, attention_mask=mask, position_ids=position_BT)
        else:
            hidden_BTD = self.run_apart(input_ids, segment_BT)
        return EhrOutput(last_hidden_state=hidden_BTD, losses={})

    def make_cache(self, rows: int, length: int) -> KVCache:
        """Room for ``rows`` contexts of up to ``length`` tokens, for generation. Raises ConfigError."""
        if "cache" not in self.provides or not sees_as_far_as(self, length):
            name = self.config.architecture["model_type"]
            raise ConfigError(
                f"{name} cannot generate contexts of {length} tokens here: it takes a causal network whose layers are "
                "joined by attention alone, over whole contexts, such as llama, qwen2 or gpt2"
            )
        return KVCache(self.config.num_hidden_layers, rows, length)

    def run(self, input_ids: Tensor, **arguments: Any) -> Tensor:
        """Hidden states of the inner network without its head."""
        if "use_cache" in self.arguments:
            arguments["use_cache"] = False
        found: Tensor = self.inner.base_model(input_ids=input_ids, **arguments).last_hidden_state
        return found

    def run_apart(self, input_ids: Tensor, segment_BT: Tensor) -> Tensor:
        """Every window as a row of its own, padded at its end; padding comes out as zeros."""
        width = segment_BT.shape[1]
        real_R = segment_BT.flatten().nonzero().flatten()
        row_R, id_R = real_R // width, segment_BT.flatten()[real_R]
        _, window_R, length_S = torch.unique(
            row_R * (segment_BT.max() + 1) + id_R, return_inverse=True, return_counts=True
        )
        # The place of a token among those of its window; they need not lie side by side.
        order_R = window_R.argsort(stable=True)
        place_R = torch.empty_like(order_R)
        start_S = length_S.cumsum(0) - length_S
        place_R[order_R] = torch.arange(len(order_R), device=order_R.device) - start_S[window_R[order_R]]
        if not len(length_S):
            return self.get_input_embeddings().weight.new_zeros(*input_ids.shape, self.config.hidden_size)
        shape = (len(length_S), int(length_S.max()))
        token_SL, mask_SL = input_ids.new_full(shape, PAD), input_ids.new_zeros(shape)
        token_SL[window_R, place_R] = input_ids.flatten()[real_R]
        mask_SL[window_R, place_R] = 1
        needs_mask = not self.causal or int(length_S.min()) < shape[1]
        hidden_SLD = self.run(token_SL, **({"attention_mask": mask_SL} if needs_mask else {}))
        out_ND = hidden_SLD.new_zeros(segment_BT.numel(), hidden_SLD.shape[-1])
        out_ND = out_ND.index_copy(0, real_R, hidden_SLD[window_R, place_R])
        return out_ND.view(*input_ids.shape, -1)

    def fit_mask(self, mask: Tensor) -> Tensor:
        """A boolean mask as the inner attention takes it: SDPA as it is, others as what is added to the scores."""
        if self.inner.config._attn_implementation == "sdpa":
            return mask
        dtype = self.get_input_embeddings().weight.dtype
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)

    def output_layers(self) -> list[nn.Module]:
        """The inner network's output layer, where it has one by that name."""
        layer = self.inner.get_output_embeddings()
        return [] if layer is None else [layer]

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., P); padded ids are at minus infinity, so that they are never predicted or sampled."""
        logits = scale_logits(self.inner.config, find_head(self.inner, self.config.kind)(hidden))
        V, P = self.config.vocab_size, logits.shape[-1]
        if P == V:
            return logits
        return logits.masked_fill(torch.arange(P, device=logits.device) >= V, -torch.inf)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the inner network starts as its architecture does."""

    @torch.no_grad()
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = False
    ) -> nn.Embedding:
        """Make the vocabulary ``new_num_tokens`` long; rows that stay keep every bit, new ones start as at first."""
        config = self.config
        config.pad_vocab_to_multiple_of = pad_to_multiple_of or config.pad_vocab_to_multiple_of
        config.vocab_size = new_num_tokens or config.vocab_size
        try:
            self.inner.resize_token_embeddings(self.num_rows, mean_resizing=mean_resizing)
            table = self.get_input_embeddings()
            self.lm_logits(table.weight.new_zeros(1, config.hidden_size))
        except Exception as error:  # each architecture fails in its own way
            name = self.inner.config.model_type
            raise ConfigError(
                f"the vocabulary of {name} cannot be changed; load or build the network again: {one_line(error)}"
            ) from error
        config.architecture = describe(self.inner.config)
        return table


def find_head(inner: Any, kind: str) -> Callable[[Tensor], Tensor]:
    """What turns the inner network's hidden states into logits. Raises ConfigError where it is not known."""
    if kind == "causal" and inner.get_output_embeddings() is not None:
        return lambda hidden: inner.get_output_embeddings()(hidden)
    if hasattr(inner, "head") and hasattr(inner, "decoder"):  # ModernBERT
        return lambda hidden: inner.decoder(inner.head(hidden))
    if hasattr(inner, "vocab_transform"):  # DistilBERT
        return lambda hidden: inner.vocab_projector(
            inner.vocab_layer_norm(inner.activation(inner.vocab_transform(hidden)))
        )
    for name in ("cls", "lm_head"):  # BERT; RoBERTa
        if hasattr(inner, name):
            return lambda hidden: getattr(inner, name)(hidden)
    raise ConfigError(f"model.architecture={inner.config.model_type}: how it computes logits is not known here")


def scale_logits(config: PretrainedConfig, logits: Tensor) -> Tensor:
    """What some architectures do to logits behind their output layer."""
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = torch.tanh(logits / cap) * cap
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / divisor
    if factor := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * factor
    return logits


def describe(config: PretrainedConfig) -> dict[str, Any]:
    """A configuration as JSON values that `AutoConfig.for_model` takes."""
    found: dict[str, Any] = config.to_diff_dict()
    found.pop("transformers_version", None)
    return {**found, "model_type": config.model_type}


def make_architecture(settings: HFConfig, rows: int) -> PretrainedConfig:
    """The inner configuration. Raises ConfigError for unknown names and for a shape that cannot be."""
    name = settings.architecture
    if name not in CONFIG_MAPPING:
        near = nearest(name, CONFIG_MAPPING.keys()).split(" Allowed:")[0]
        raise ConfigError(f"transformers has no architecture {name!r}.{near}")
    config_class = CONFIG_MAPPING[name]
    if config_class not in KINDS[settings.kind][1]:
        raise ConfigError(f"model.architecture={name} has no {settings.kind} language model in transformers")
    known = set(inspect.signature(config_class.__init__).parameters) | set(config_class.attribute_map)
    given = {str(key): value for key, value in settings.overrides.items()}
    for key in given:
        if key not in known:
            raise ConfigError(f"model.overrides: {name} has no setting {key!r}.{nearest(key, known - {'self'})}")
    places = settings.context_length + (PAD + 1 if name in OFFSET_POSITIONS else 0)
    common = {
        "vocab_size": rows,
        "hidden_size": settings.width,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": settings.num_heads,
        "num_key_value_heads": settings.num_heads,
        "head_dim": settings.width // settings.num_heads,
        "intermediate_size": settings.mlp_width or 4 * settings.width,
        "max_position_embeddings": places,
        "pad_token_id": PAD,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),  # not the architecture's own
    }
    try:
        return AutoConfig.for_model(name, **({k: v for k, v in common.items() if k in known} | given))
    except Exception as error:  # each architecture checks in its own way
        raise ConfigError(f"model.architecture={name} refuses these settings: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An error's text in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def check(settings: HFConfig) -> None:
    """Raise ConfigError for settings that cannot be."""
    s = settings
    for name in ("num_layers", "num_heads", "width", "context_length"):
        if getattr(s, name) < 1:
            raise ConfigError(f"model.{name} is {getattr(s, name)}; it must be at least 1")
    if s.width % s.num_heads:
        raise ConfigError(f"model.width is {s.width}; it must be a multiple of model.num_heads, {s.num_heads}")
    for name, words in (("kind", tuple(KINDS)), ("packing", ("auto", "mask", "rows"))):
        if getattr(s, name) not in words:
            raise ConfigError(f"model.{name} is {getattr(s, name)!r}; it must be one of {', '.join(words)}")


def build(settings: HFConfig, vocabulary_size: int, columns: Sequence[str] = ()) -> HFModel:
    """A new `HFModel`; it reads tokens only, so any ``columns`` do. Raises ConfigError."""
    check(settings)
    inner = make_architecture(settings, padded_rows(vocabulary_size, 64))
    config = EhrHFConfig(
        architecture=describe(inner),
        kind=settings.kind,
        packing="mask" if settings.packing == "auto" else settings.packing,
        vocab_size=vocabulary_size,
        hidden_size=inner.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        max_position_embeddings=settings.context_length,
    )
    try:
        model = HFModel(config)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"model.architecture={settings.architecture} cannot be made: {one_line(error)}") from error
    choose_packing(model, settings)
    return model


@torch.no_grad()
def choose_packing(model: HFModel, settings: HFConfig) -> None:
    """Try the model with a few tokens; with ``auto``, take masks where they are exact. Raises ConfigError."""
    name, training = settings.architecture, model.training
    model.eval()
    try:
        known = has_its_logits(model)
    except Exception as error:
        raise ConfigError(f"model.architecture={name} fails on its first tokens: {one_line(error)}") from error
    if not known:
        raise ConfigError(f"model.architecture={name}: how it computes logits is not known here")
    far = 2 * model.config.max_position_embeddings  # encoders look half as far to each side
    takes_mask = {"attention_mask", "position_ids"} <= model.arguments and sees_as_far_as(model, far)
    if settings.packing != "rows" and not (takes_mask and packs_exactly(model)):
        if settings.packing == "mask":
            raise ConfigError(f"model.packing=mask does not keep the windows of {name} apart; use model.packing=rows")
        model.config.packing = "rows"
    if model.config.packing == "rows" and not packs_exactly(model):
        raise ConfigError(
            f"model.architecture={name} mixes padding into the states of a window, even in a row of its own, so that "
            "they depend on the windows beside it; choose another architecture"
        )
    model.train(training)


def trial_tokens(model: HFModel) -> Tensor:
    """(1, 8) ids from all over the vocabulary, none of them special where there are others."""
    last = model.config.vocab_size - 1
    return torch.linspace(min(7, last), last, sum(TRIAL), device=model.device).long()[None]


def has_its_logits(model: HFModel) -> bool:
    """Whether hidden states and head give what the inner network itself gives."""
    token_BT, V = trial_tokens(model), model.config.vocab_size
    theirs, ours = model.inner(input_ids=token_BT).logits, model.lm_logits(model.run(token_BT))
    return torch.allclose(ours[..., :V], theirs[..., :V], rtol=1e-4, atol=1e-5)


def sees_as_far_as(model: HFModel, length: int) -> bool:
    """Whether no layer looks less far than this many tokens."""
    limits = [getattr(model.inner.config, name, None) for name in WINDOWS]
    numbers = [limit for found in limits for limit in (found if isinstance(found, list) else [found])]
    return all(number is None or number >= length for number in numbers)


def packs_exactly(model: HFModel) -> bool:
    """Whether two windows of unequal lengths in a row give, in the model's way of packing, what each gives alone."""
    token_BT = trial_tokens(model)
    segment_BT = torch.repeat_interleave(torch.tensor([1, 2]), torch.tensor(TRIAL))[None].to(token_BT.device)
    try:
        alone = torch.cat([model.run(part) for part in token_BT.split(TRIAL, dim=1)], dim=1)
        together = model(token_BT, segment_ids=segment_BT).last_hidden_state
    except (RuntimeError, ValueError, TypeError, IndexError):  # it takes no such mask
        return False
    return torch.allclose(together, alone, rtol=1e-4, atol=1e-5)


AutoConfig.register(EhrHFConfig.model_type, EhrHFConfig, exist_ok=True)
AutoModel.register(EhrHFConfig, HFModel, exist_ok=True)
