"""Adapters: small trained parts on a frozen network, made with peft, and kept with what else was trained.

FOLDER/adapter_config.json  adapter_model.safetensors   as peft reads them, with a token table that was trained
FOLDER/adapter.json                                     settings, the base it is for, the size of its vocabulary
FOLDER/objective.safetensors                            the head, where the objective has parameters

Every linear layer of our networks is a module that is called, so an adapter on it is in the path of every forward;
experts are no linear layers and stay as they are.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.folder import new_folder, read_json, write_json
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn

from ehr_models.adapter_settings import AdapterConfig, resolve
from ehr_models.digest import weights_digest

TARGETS = ("attention", "feed_forward", "all")
FACTS, TENSORS, HEAD = "adapter.json", "adapter_model.safetensors", "objective.safetensors"
NOT_ADAPTED = ("router", "lm_head")
DEFAULT = "default"


def wrap(model: Any, settings: AdapterConfig, name: str = DEFAULT) -> PeftModel:
    """The model with a fresh adapter, all else frozen; the output is unchanged until it is trained.

    A model that has adapters gets one more and uses it. Raises ConfigError for settings that cannot be.
    """
    peft_config = _peft_config(_plain(model), settings)
    if isinstance(model, PeftModel):
        if name in model.peft_config:
            raise ConfigError(f"the model has an adapter {name!r} already; give the new one another name")
        model.add_adapter(name, peft_config)
        model.set_adapter(name)
    else:
        bases = {table: weights_digest(model, _left_out(model, table)) for table in (False, True)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft asks it
            model = get_peft_model(model, peft_config, adapter_name=name)
        model.ehr_bases, model.ehr_settings = bases, {}
    model.ehr_settings[name] = settings
    return model


def apply(model: Any, asked: str | Mapping[str, Any]) -> PeftModel:
    """The model with the adapter that a user asks for: a preset, one with changes, or one that `save` wrote.

    Raises ConfigError as `resolve` and `wrap` do, and FormatError as `load` does.
    """
    if isinstance(asked, str) and (Path(asked) / FACTS).is_file():
        return load(model, Path(asked))
    return wrap(model, resolve(asked))


def save(model: PeftModel, folder: Path, objective: nn.Module | None = None, name: str = DEFAULT) -> None:
    """Write one adapter with the token table, if it was trained, and the objective's head."""
    settings: AdapterConfig = model.ehr_settings[name]
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    facts = {
        "settings": dataclasses.asdict(settings),
        "base": model.ehr_bases[settings.embeddings],
        "vocab_size": _plain(model).config.vocab_size,
        "head": bool(objective is not None and objective.state_dict()),
    }
    with new_folder(folder) as partial:
        model.peft_config[name].save_pretrained(str(partial))
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial / TENSORS)
        if objective is not None and facts["head"]:
            state = objective.state_dict()
            save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, partial / HEAD)
        write_json(partial / FACTS, facts)


def load(model: Any, folder: Path, objective: nn.Module | None = None, name: str = DEFAULT) -> PeftModel:
    """The base with an adapter that `save` wrote, in use, and the objective with its head.

    A base whose vocabulary is smaller than that of an adapter with its own token table grows first. Raises FormatError
    for an adapter that was made for other weights, or a folder that is none.
    """
    facts = read_json(folder / FACTS)
    try:
        settings, base, size = AdapterConfig(**facts["settings"]), facts["base"], facts["vocab_size"]
        has_head = facts["head"]
    except (KeyError, TypeError) as error:
        raise FormatError(f"{folder / FACTS} does not describe an adapter: {error!r}") from error
    if isinstance(model, PeftModel):
        found = model.ehr_bases[settings.embeddings]
    else:
        found = weights_digest(model, _left_out(model, settings.embeddings))
    if found != base:
        raise FormatError(
            f"{folder} is an adapter for a base with weights {base[:12]}, and this model has {found[:12]}; "
            "load the model that it was trained on"
        )
    _fit_vocabulary(model, settings, size, folder)
    wrapped = wrap(model, settings, name)
    _fill(wrapped, load_file(folder / TENSORS), name, folder)
    if objective is not None and has_head:
        try:
            objective.load_state_dict(load_file(folder / HEAD))
        except RuntimeError as error:
            raise FormatError(
                f"{folder / HEAD} is the head of another objective; build the one it was trained with"
            ) from error
    return wrapped.eval()


def merge(model: PeftModel) -> Any:
    """The network with the adapter in use added to its weights, as if it had been trained so; a plain network."""
    return model.merge_and_unload()


def count_parameters(model: nn.Module) -> dict[str, int]:
    """``total``, ``trainable``, ``adapter`` (low-rank parts) and ``frozen`` parameters; shared ones count once."""
    named = list(model.named_parameters())
    trainable = sum(weight.numel() for _, weight in named if weight.requires_grad)
    total = sum(weight.numel() for _, weight in named)
    adapter = sum(weight.numel() for name, weight in named if ".lora_" in name)
    return {"total": total, "trainable": trainable, "adapter": adapter, "frozen": total - trainable}


def target_names(model: nn.Module, targets: str) -> list[str]:
    """Full names of the linear layers to adapt: those in numbered blocks, by whether attention is in their name."""
    if targets not in TARGETS:
        raise ConfigError(f"adapter.targets is {targets!r}; it must be one of {', '.join(TARGETS)}")
    found = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if not isinstance(module, nn.Linear) or not any(part.isdigit() for part in parts):
            continue
        is_attention = any("att" in part for part in parts)
        wanted = targets == "all" or is_attention == (targets == "attention")
        if wanted and not set(parts) & {*NOT_ADAPTED, *getattr(model, "not_adapted", ())}:
            found.append(name)
    if not found:
        raise ConfigError(f"{type(model).__name__} has no linear layer for adapter.targets={targets}; choose another")
    return found


def _peft_config(plain: Any, settings: AdapterConfig) -> LoraConfig:
    if min(settings.rank, settings.alpha) < 1 or not 0 <= settings.dropout < 1:
        raise ConfigError(
            f"adapter: rank is {settings.rank}, alpha {settings.alpha} and dropout {settings.dropout}; "
            "rank and alpha must be at least 1, and dropout at least 0 and below 1"
        )
    table = None
    if settings.embeddings:
        table = [_table_name(plain)]
        if getattr(_table(plain), "projection", None) is not None:
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


def _table(plain: Any) -> nn.Module:
    table: nn.Module = plain.get_input_embeddings()
    return table


def _table_name(plain: Any) -> str:
    """Full name of the token table among the modules."""
    table = _table(plain)
    return next(name for name, module in plain.named_modules() if module is table)


def _left_out(model: Any, embeddings: bool) -> list[str]:
    """Tensors that do not say which base it is: the token table, where an adapter brings its own."""
    if not embeddings:
        return []
    name = _table_name(model)
    return [key for key in model.state_dict() if key.startswith(f"{name}.")]


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
