"""Adapters: small trained parts on a frozen network, made with peft, and kept with what else was trained.

FOLDER/adapter_config.json  adapter_model.safetensors   as peft reads them, with token table and output layer if trained
FOLDER/adapter.json                    component and settings, base, size of the vocabulary, the objective's settings
FOLDER/objective.safetensors                            the head, where the objective has parameters

Every linear layer of our networks is a module that is called, so an adapter on it is in the path of every forward;
experts are no linear layers and stay as they are. Whatever grows with the vocabulary is trained and kept with the token
table: biases and the output layer, tied where it was tied.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ehr_core.config import to_plain
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.folder import file_digest, file_digests, new_folder, read_json, verify_below, write_sealed
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ehr_models.adapter_settings import AdapterConfig
from ehr_models.base import EhrModel
from ehr_models.code_vectors import CodeEmbedding
from ehr_models.digest import weights_digest

TARGETS = ("attention", "feed_forward", "all")
FACTS, TENSORS, HEAD = "adapter.json", "adapter_model.safetensors", "objective.safetensors"
ATTENTION = re.compile(r"att|^(q|k|v|qkv|query|key|value)(_|$)")
"""In the name of a module: it belongs to attention."""
NOT_ADAPTED = ("router", "lm_head")
DEFAULT = "default"
ORIGINAL = ".original_module."
"""What peft puts into the names of tensors beside which it trains a copy."""


class LowRank:
    """`ehr_core.protocols.Adapter`: LoRA and its variants, one on a model. The functions below know of several."""

    def __init__(self, settings: AdapterConfig):
        check(settings)
        self.settings = settings

    def apply(self, model: nn.Module) -> PeftModel:
        """See `wrap`."""
        return wrap(model, self.settings)

    def load(self, model: nn.Module, folder: Path, objective: nn.Module | None = None) -> PeftModel:
        """See `load`. Raises FormatError for a folder with an adapter of other settings, too."""
        if (found := _facts(Path(folder))[0]) != self.settings:
            kept, wanted = to_plain(found), to_plain(self.settings)
            odd = next(name for name in wanted if kept[name] != wanted[name])
            raise FormatError(f"{folder} is an adapter with {odd}={kept[odd]}, and this one has {odd}={wanted[odd]}")
        return load(model, folder, objective)

    def save(self, model: nn.Module, folder: Path, objective: nn.Module | None = None) -> None:
        """See `save`."""
        assert isinstance(model, PeftModel), "the model was not adapted"
        save(model, folder, objective)

    def merge(self, model: nn.Module) -> Any:
        """See `merge`."""
        assert isinstance(model, PeftModel), "the model was not adapted"
        return merge(model)


def wrap(model: Any, settings: AdapterConfig, name: str = DEFAULT) -> PeftModel:
    """The model with a fresh adapter, all else frozen; the output is unchanged until it is trained.

    A model that has adapters gets one more and uses it. Raises ConfigError for settings that cannot be.
    """
    peft_config = _peft_config(_plain(model), settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft asks it
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # it stays so, see below
        if isinstance(model, PeftModel):
            if name in model.peft_config:
                raise ConfigError(f"the model has an adapter {name!r} already; give the new one another name")
            model.add_adapter(name, peft_config)
            model.set_adapter(name)
        else:
            bases = {table: weights_digest(model, _left_out(model, table)) for table in (False, True)}
            model = get_peft_model(model, peft_config, adapter_name=name)
            model.ehr_bases, model.ehr_settings = bases, {}
    if settings.embeddings:  # peft copies one module after the other, and what was tied is no more
        copies = f".modules_to_save.{name}."
        for names in _replaced(_plain(model)):
            _tie(_plain(model), [each.replace(ORIGINAL, copies) for each in names if ORIGINAL in each])
    model.ehr_settings[name] = settings
    return model


@dataclasses.dataclass(frozen=True)
class Facts:
    """``adapter.json``."""

    name: str
    settings: dict[str, Any]
    base: str
    """Digest of the weights that it sits on."""
    vocab_size: int
    objective: dict[str, Any] | None
    """Settings of the objective whose head is there."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """Digests of the files beside it."""


def save(model: PeftModel, folder: str | Path, objective: nn.Module | None = None, name: str = DEFAULT) -> None:
    """Write one adapter with the token table and the output layer, if they were trained, and the objective's head.

    Raises ConfigError for a name that no adapter has, and FormatError where the folder exists.
    """
    known: dict[str, AdapterConfig] = getattr(model, "ehr_settings", {})
    if name not in known:
        raise ConfigError(f"the model has no adapter {name!r}; it has {', '.join(known) or 'none that `wrap` gave it'}")
    facts = {
        "name": known[name].name,
        "settings": to_plain(known[name]),
        "base": model.ehr_bases[known[name].embeddings],
        "vocab_size": _plain(model).config.vocab_size,
        "objective": _objective(objective),
    }
    with new_folder(Path(folder)) as partial:
        model.peft_config[name].save_pretrained(str(partial))
        _write(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False), partial / TENSORS)
        if objective is not None and facts["objective"]:
            _write(objective.state_dict(), partial / HEAD)
        write_sealed(partial / FACTS, facts | {"files": file_digests(partial)})


def load(model: Any, folder: str | Path, objective: nn.Module | None = None, name: str = DEFAULT) -> PeftModel:
    """The base with an adapter that `save` wrote, in use, and the objective with its head.

    A base whose vocabulary is smaller than that of an adapter with its own token table grows first. Raises FormatError
    for an adapter that was made for other weights or another objective, or a folder that is none.
    """
    folder = Path(folder)
    settings, base, size, trained = _facts(folder)
    if isinstance(model, PeftModel):
        found = model.ehr_bases[settings.embeddings]
    else:
        found = weights_digest(model, _left_out(model, settings.embeddings))
    if found != base:
        raise FormatError(
            f"{folder} is an adapter for a base with weights {base[:12]}, and this model has {found[:12]}; "
            "load the model that it was trained on"
        )
    tensors, head = _read(folder / TENSORS), _read_head(folder, objective, trained)
    _fit_vocabulary(model, settings, size, folder)
    wrapped = wrap(model, settings, name)
    _fill(wrapped, tensors, name, folder)
    if objective is not None and head is not None:
        try:
            objective.load_state_dict(head)
        except RuntimeError as error:
            raise FormatError(
                f"{folder / HEAD} is the head of another objective; build the one it was trained with"
            ) from error
    return wrapped.eval()


def merge(model: PeftModel) -> Any:
    """The network with the adapter in use added to its weights, as if it had been trained so; a plain network."""
    ties = _replaced(_plain(model))
    plain = model.merge_and_unload()
    for names in ties:  # a bias may have a second name outside of what was replaced
        _tie(plain, [each.replace(ORIGINAL, ".") for each in names])
    return plain


def count_parameters(model: nn.Module) -> dict[str, int]:
    """``total``, ``trainable``, ``adapter`` (low-rank parts) and ``frozen`` parameters; shared ones count once."""
    named = list(model.named_parameters())
    trainable = sum(weight.numel() for _, weight in named if weight.requires_grad)
    total = sum(weight.numel() for _, weight in named)
    adapter = sum(weight.numel() for name, weight in named if ".lora_" in name)
    return {"total": total, "trainable": trainable, "adapter": adapter, "frozen": total - trainable}


def _facts(folder: Path) -> tuple[AdapterConfig, str, int, Any]:
    """Settings, base, size of the vocabulary and the objective's settings of a folder. Raises FormatError."""
    verify_below(folder)
    facts = read_json(folder / FACTS, Facts)
    for name, digest in facts.files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise FormatError(f"{folder / name} is missing or damaged ({FACTS} lists it); save the adapter again")
    try:
        settings = AdapterConfig(**facts.settings)
        check(settings)
    except (TypeError, ConfigError) as error:
        raise FormatError(f"{folder / FACTS} does not describe an adapter ({error}); save it again") from error
    return settings, facts.base, facts.vocab_size, facts.objective


def target_names(model: nn.Module, targets: str) -> list[str]:
    """Full names of the linear layers to adapt: those in numbered blocks, or all where a model has no such blocks.

    A layer belongs to attention when its name, or that of a module around it, says so.
    """
    left_out = {*NOT_ADAPTED, *getattr(model, "not_adapted", ())}
    linear = [name.split(".") for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    linear = [parts for parts in linear if not left_out & set(parts)]
    in_blocks = [parts for parts in linear if any(part.isdigit() for part in parts)]
    chosen = [
        ".".join(parts)
        for parts in in_blocks or linear
        if targets == "all" or any(ATTENTION.search(part) for part in parts) == (targets == "attention")
    ]
    if not chosen:
        raise ConfigError(f"{type(model).__name__} has no linear layer for adapter.targets={targets}; choose another")
    return chosen


def check(settings: AdapterConfig) -> None:
    """Raise ConfigError for settings that cannot be, or a value of another type than its default's."""
    for key, value in to_plain(settings).items():
        kind = type(getattr(AdapterConfig, key))
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ConfigError(f"adapter.{key} is {value!r}; it must be of type {kind.__name__}")
    if settings.targets not in TARGETS:
        raise ConfigError(f"adapter.targets is {settings.targets!r}; it must be one of {', '.join(TARGETS)}")
    if min(settings.rank, settings.alpha) < 1 or not 0 <= settings.dropout < 1:
        raise ConfigError(
            f"adapter: rank is {settings.rank}, alpha {settings.alpha} and dropout {settings.dropout}; "
            "rank and alpha must be at least 1, and dropout at least 0 and below 1"
        )


def _peft_config(plain: Any, settings: AdapterConfig) -> LoraConfig:
    check(settings)
    table = None
    if settings.embeddings:
        table = _vocabulary_parts(plain)
        if not table:
            raise ConfigError(
                f"adapter.embeddings trains the token table, and {type(plain).__name__} has no get_input_embeddings to "
                "show it; set it to false"
            )
        if isinstance(plain.get_input_embeddings(), CodeEmbedding) and plain.get_input_embeddings().projection:
            raise ConfigError("adapter.embeddings cannot train a token table behind a projection; set it to false")
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_targets(plain, settings.targets),
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        modules_to_save=table,
    )


def _targets(plain: nn.Module, targets: str) -> list[str]:
    """Names as they were before any adapter: peft keeps a layer that it has adapted under ``base_layer``."""
    names = [name.removesuffix(".base_layer") for name in target_names(plain, targets)]
    return [name for name in names if ".lora_" not in name]


def _plain(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _table(plain: Any) -> nn.Module | None:
    """The token table; None for a model that does not show it."""
    try:
        table: nn.Module = plain.get_input_embeddings()
    except NotImplementedError:
        return None
    return table


def _vocabulary_parts(plain: Any) -> list[str]:
    """Full names of the modules that grow with the vocabulary: the token table, and what is an output layer's own."""
    table = _table(plain)
    if table is None:
        return []
    own = plain.output_layers() if isinstance(plain, EhrModel) else [plain.get_output_embeddings()]
    return [name for name, module in plain.named_modules() if any(module is part for part in (table, *own))]


def _left_out(model: Any, embeddings: bool) -> set[str]:
    """Tensors that do not say which base it is: all that grows with the vocabulary, where an adapter brings its own."""
    if not embeddings:
        return set()
    parts = tuple(f"{name}." for name in _vocabulary_parts(model))
    left_out = {name for name in model.state_dict() if name.startswith(parts)}
    return left_out.union(*(names for names in _names_of(model).values() if left_out & {*names}))


def _names_of(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Parameters with their names, of which tied ones have several."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        found.setdefault(weight, []).append(name)
    return found


def _replaced(plain: nn.Module) -> list[list[str]]:
    """Names of each parameter beside which a copy is trained, those that say so first."""
    found = (sorted(names, key=lambda name: ORIGINAL not in name) for names in _names_of(plain).values())
    return [names for names in found if ORIGINAL in names[0]]


def _tie(model: nn.Module, names: list[str]) -> None:
    """Let all names stand for the parameter that the first one stands for."""
    for name in names[1:]:
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, model.get_parameter(names[0]))


def _objective(objective: nn.Module | None) -> Any:
    """Whose head is kept: the objective's settings, or its class where it keeps none; None where it has no head."""
    if objective is None or not objective.state_dict():
        return None
    return to_plain(getattr(objective, "settings", None)) or {"name": type(objective).__name__}


def _read_head(folder: Path, objective: nn.Module | None, trained: Any) -> dict[str, Tensor] | None:
    """The head that belongs to an objective, or None for one without parameters."""
    own = _objective(objective)
    if own is None:
        return None
    if trained is None:
        raise FormatError(f"{folder} was saved without a head; save it with its objective, or load it without one")
    if odd := [key for key in {**trained, **own} if trained.get(key) != own.get(key)]:
        kept, wanted = (", ".join(f"{key}={one.get(key)}" for key in odd) for one in (trained, own))
        raise FormatError(
            f"{folder} holds the head of an objective with {kept}, and this one has {wanted}; "
            "build the one it was trained with"
        )
    return _read(folder / HEAD)


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    # Clones, because tied tensors have two names, peft asks for both, and a file of safetensors shares no memory.
    whole = torch.contiguous_format
    save_file({key: value.detach().cpu().clone(memory_format=whole) for key, value in tensors.items()}, path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path} is missing or damaged ({error}); save the adapter again") from error


def _fit_vocabulary(model: Any, settings: AdapterConfig, size: int, folder: Path) -> None:
    plain = _plain(model)
    if plain.config.vocab_size == size:
        return
    if not settings.embeddings or isinstance(model, PeftModel):
        raise FormatError(
            f"{folder} is an adapter for a vocabulary of {size} tokens, and the model has {plain.config.vocab_size}"
        )
    plain.resize_token_embeddings(size)


@torch.no_grad()
def _fill(model: PeftModel, tensors: dict[str, torch.Tensor], name: str, folder: Path) -> None:
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    shapes, found = ({key: tuple(value.shape) for key, value in state.items()} for state in (expected, tensors))
    if shapes != found:
        odd = sorted(key for key in {*shapes, *found} if shapes.get(key) != found.get(key))
        raise FormatError(f"{folder / TENSORS} does not fit its settings: {len(odd)} tensors differ, first {odd[0]}")
    set_peft_model_state_dict(model, tensors, adapter_name=name)
