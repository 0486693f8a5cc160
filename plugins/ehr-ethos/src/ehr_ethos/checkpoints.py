"""Checkpoints of EHR_FM and ETHOS to run folders, and runs to EHR_FM's checkpoints.

Both systems save one file with a state dict of the same network: GPT-2 without biases, queries, keys and values in one
matrix, the output layer tied to the token table. Its keys are ``model``, ``model_configs`` and ``vocab_stoi`` (EHR_FM),
or ``model``, ``model_config`` and ``vocab`` (ETHOS). A dense model computes the same logits here. A mixture of EHR_FM
keeps its weights and not its computation: there, experts have limited places, and second choices are drawn by chance.

Shapes: D width, V vocabulary, P rows of the token table, E experts, I inner width of an expert.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ehr_core.errors import ConfigError, FormatError
from ehr_models.settings import GPTConfig
from torch import Tensor

from ehr_ethos import inert

WRAPPERS = ("_orig_mod.", "module.")
"""What ``torch.compile`` and DDP put in front of names."""
MULTIPLE = 64
"""Both systems have as many rows of the token table as the vocabulary, rounded up to this."""
BUFFERS = re.compile(r"(.*\.)?(attn\.(bias|masked_bias)|pos|threshold_(train|eval)|dummy|zero)$")
"""Constants, not weights."""
OURS = {
    "ln_1.weight": "attention_norm.weight",
    "ln_2.weight": "mlp_norm.weight",
    "attn.c_proj.weight": "attention.o_proj.weight",
    "mlp.c_fc.weight": "mlp.up_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
    "router.w_g.weight": "mlp.router.weight",
}
"""Their name in a block to ours, where the tensor is the same."""


@dataclass(frozen=True)
class Imported:
    """A checkpoint in our terms."""

    settings: GPTConfig
    weights: dict[str, Tensor]
    tokens: list[str]
    """The vocabulary, by id."""
    step: int
    loss: float | None


def read(path: Path, num_heads: int | None = None, vocabulary: Path | None = None) -> Imported:
    """Read a checkpoint; ``num_heads`` and a ``vocabulary`` file (one token a line) are for those that do not say.

    Nothing in the file is executed (see `ehr_ethos.inert`). Raises FormatError for what cannot be read or is no such
    network, ConfigError when it has parts that this one does not.
    """
    content = inert.load(path)
    if not isinstance(content.get("model"), dict):
        raise FormatError(f"{path} has no state dict under the key model; expected a checkpoint of EHR_FM or ETHOS")
    found = weights_of(content["model"], path)
    described = inert.plain(content.get("model_configs", content.get("model_config", {})))
    described = described if isinstance(described, dict) else {}
    tokens = tokens_of(content, vocabulary, len(expect(found, "transformer.wte.weight", path)), path)
    settings = settings_of(found, described, num_heads, path)
    weights = to_ours(found, settings, len(tokens), path)
    step, loss = content.get("iter_num"), content.get("best_val_loss")
    return Imported(settings, weights, tokens, step if isinstance(step, int) else 0, number(loss))


def number(value: Any) -> float | None:
    """A value as a number, if it is one."""
    is_one = isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
    return float(value) if is_one else None


def weights_of(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict without wrappers' prefixes, constants, zero biases and the tied output layer."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        if isinstance(value, Tensor) and not BUFFERS.match(name):
            found[name] = value
    for name in [name for name in found if name.endswith("bias") and not name.endswith("mult_bias")]:
        if found.pop(name).any():
            raise ConfigError(f"{path}: {name} is not zero, and the model gpt has no biases; it cannot be imported")
    table = found.get("transformer.wte.weight")
    output = found.pop("lm_head.weight", table)
    if table is None and output is not None:
        found["transformer.wte.weight"] = output
    elif table is None or output is None or not torch.equal(table, output):
        raise ConfigError(f"{path}: the output layer is not the token table, or there is none; it cannot be imported")
    return found


def tokens_of(content: Mapping[str, Any], vocabulary: Path | None, rows: int, path: Path) -> list[str]:
    """Tokens by id, from the checkpoint or from a file, which must agree with it and with the rows of its table."""
    ids = content.get("vocab_stoi", content.get("vocab"))
    own = None
    if isinstance(ids, dict) and ids:
        if sorted(ids.values()) != list(range(len(ids))):
            raise FormatError(f"{path}: the ids of its vocabulary are not 0 to {len(ids) - 1}")
        own = sorted(ids, key=ids.__getitem__)
    if vocabulary is None:
        if own is None:
            raise FormatError(f"{path} has no vocabulary; give vocabulary=FILE with one token a line (vocab_t....csv)")
        return own
    given = lines_of(vocabulary)
    if own is not None and given != own:
        raise FormatError(
            f"{vocabulary} has {len(given)} tokens that are not the {len(own)} of the vocabulary in {path}; "
            "leave vocabulary out"
        )
    fewest = rows if rows % MULTIPLE else rows - MULTIPLE + 1
    if own is None and not fewest <= len(given) <= rows:
        raise FormatError(
            f"{vocabulary} has {len(given)} tokens, and {path} has {rows} rows for {fewest} to {rows}; "
            "give the vocabulary that it was trained with"
        )
    return given


def lines_of(vocabulary: Path) -> list[str]:
    """Tokens of a file with one token a line; those with a comma may stand in quotes."""
    try:
        with vocabulary.open(encoding="utf-8", newline="") as file:
            tokens = [",".join(fields) for fields in csv.reader(file)]
    except FileNotFoundError:
        raise FormatError(f"{vocabulary} is missing; expected a vocabulary with one token a line") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{vocabulary} is no text with one token a line: {error}") from error
    if not all(tokens) or len(set(tokens)) < len(tokens):
        raise FormatError(f"{vocabulary} has an empty line or a token twice; expected one token a line")
    return tokens


def settings_of(
    found: Mapping[str, Tensor], described: Mapping[str, Any], num_heads: int | None, path: Path
) -> GPTConfig:
    """The shape, read off the tensors; from the description what no tensor tells."""
    places, width = expect(found, "transformer.wpe.weight", path).shape
    numbers = [int(match[1]) for name in found if (match := re.match(r"transformer\.h\.(\d+)\.", name))]
    own = described.get("n_head")
    if num_heads is not None and (num_heads < 1 or (own is not None and num_heads != own)):
        expected = "give at least 1" if own is None else f"{path} has {own}: give this number or leave it out"
        raise ConfigError(f"num_heads is {num_heads}; {expected}")
    heads = own if num_heads is None else num_heads
    if not isinstance(heads, int) or heads < 1:
        raise FormatError(f"{path} does not say how many attention heads it has; give num_heads=N")
    activation = described.get("activation_function", "gelu")
    if activation != "gelu":
        raise ConfigError(f"{path} computes with {activation!r}, and the model gpt with 'gelu'; it cannot be imported")
    dropout = described.get("resid_pdrop", described.get("dropout", 0.0))
    settings = GPTConfig(
        num_layers=max(numbers, default=-1) + 1,
        num_heads=heads,
        width=width,
        context_length=places,
        dropout=number(dropout) or 0.0,
    )
    if "transformer.h.0.experts.c_fc" in found:
        return with_experts(settings, found, described, path)
    fused, up = (expect(found, f"transformer.h.0.{name}", path) for name in ("attn.c_attn.weight", "mlp.c_fc.weight"))
    inner = up.shape[1] if is_conv(fused) else up.shape[0]
    if inner % width:
        raise ConfigError(f"{path}: its MLP is {inner} wide, no multiple of {width}; it cannot be imported")
    settings.mlp_ratio = inner // width
    return settings


def with_experts(
    settings: GPTConfig, found: Mapping[str, Tensor], described: Mapping[str, Any], path: Path
) -> GPTConfig:
    """Settings of a mixture. The weights of its losses are those of EHR_FM, for training it further."""
    experts, width, twice = found["transformer.h.0.experts.c_fc"].shape
    ratios = [ratio for ratio in range(1, 17) if int(ratio * width * 2 / 3) == twice // 2]
    if not ratios or any("experts.norm" in name for name in found):
        raise ConfigError(f"{path}: experts that are {twice // 2} wide, or have norms, cannot be imported")
    settings.mlp_ratio, settings.num_experts = ratios[0], experts
    settings.top_k = int(described.get("top_k", 2))
    settings.noisy_router = bool(described.get("use_noisy_top_k", False))
    uses = {"balance_weight": ("use_aux_loss", True, "aux_loss_weight", 0.01)}
    uses["router_z_weight"] = ("use_router_z_loss", False, "router_z_loss_weight", 0.001)
    for name, (switch, on, weight, default) in uses.items():
        setattr(settings, name, float(described.get(weight, default)) if described.get(switch, on) else 0.0)
    return settings


def expect(found: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    """A matrix by name. Raises FormatError when it is not there."""
    if name not in found or found[name].dim() != 2:
        raise FormatError(f"{path} has no matrix {name}; expected a checkpoint of EHR_FM or ETHOS")
    return found[name]


def is_conv(fused: Tensor) -> bool:
    """Whether matrices are kept as (in, out), as transformers' Conv1D keeps them; seen from queries, keys, values."""
    return fused.shape[1] == 3 * fused.shape[0]


def to_ours(found: Mapping[str, Tensor], settings: GPTConfig, size: int, path: Path) -> dict[str, Tensor]:
    """Our state dict. Raises FormatError for a tensor too many or a table smaller than the vocabulary."""
    table = found["transformer.wte.weight"]
    if table.shape[0] < size:
        raise FormatError(f"{path} has {table.shape[0]} rows for {size} tokens; give its own vocabulary")
    padded = table.new_zeros(-(-size // 64) * 64, table.shape[1])
    padded[:size] = table[:size]
    ours = {
        "embeddings.token.weight": padded,
        "embeddings.position.weight": found["transformer.wpe.weight"],
    }
    if "transformer.ln_f.weight" not in found:
        raise FormatError(f"{path} has no transformer.ln_f.weight; expected a checkpoint of EHR_FM or ETHOS")
    ours["norm.weight"] = found["transformer.ln_f.weight"]
    names = {f"transformer.{name}.weight" for name in ("wte", "wpe", "ln_f")}
    for index in range(settings.num_layers):
        prefix = f"transformer.h.{index}."
        part = {name.removeprefix(prefix): found[name] for name in found if name.startswith(prefix)}
        names |= {prefix + name for name in part}
        block = block_to_ours(part, f"{path}: block {index}")
        ours |= {f"blocks.{index}.{name}": value for name, value in block.items()}
    if unknown := sorted(set(found) - names):
        raise FormatError(f"{path} has a tensor {unknown[0]}, which this network does not; it cannot be imported")
    return {name: value.detach().float().contiguous().clone() for name, value in ours.items()}


def block_to_ours(part: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """One block. Raises FormatError for a tensor that is not known."""
    if "attn.c_attn.weight" not in part:
        raise FormatError(f"{where} has no attn.c_attn.weight; expected a checkpoint of EHR_FM or ETHOS")
    fused = part.pop("attn.c_attn.weight")
    turned = is_conv(fused)
    qkv = (fused.T if turned else fused).chunk(3)
    ours = {f"attention.{name}_proj.weight": value for name, value in zip("qkv", qkv, strict=True)}
    if "experts.c_fc" in part:
        gain_I = part.pop("experts.geglu.mult_bias", torch.ones(1))
        ours["mlp.experts.up_proj.weight"] = part.pop("experts.c_fc").transpose(1, 2)
        # (E, I, D): a gain on the inner width is a factor of the second matrix
        ours["mlp.experts.down_proj.weight"] = (part.pop("experts.c_proj") * gain_I[:, None]).transpose(1, 2)
    for name, value in part.items():
        if name not in OURS:
            raise FormatError(f"{where} has a tensor {name}, which this network does not; it cannot be imported")
        ours[OURS[name]] = value.T if turned and value.dim() == 2 and not name.startswith("router") else value
    return ours


def to_theirs(weights: Mapping[str, Tensor], settings: GPTConfig) -> dict[str, Tensor]:
    """EHR_FM's state dict of our weights, matrices as (out, in). Raises ConfigError for parts it does not have."""
    plain = (settings.norm, settings.mlp, settings.positions, settings.qk_norm) == ("layer", "gelu", "learned", False)
    if not plain or (settings.num_experts and settings.stride != 1):
        raise ConfigError(
            "EHR_FM has LayerNorm, GELU, learned positions, experts in all blocks or none; this run cannot be exported"
        )
    if settings.num_experts and settings.top_k < 2:
        raise ConfigError(
            f"EHR_FM gives each token to 2 experts at least; a run with top_k={settings.top_k} cannot be exported"
        )
    theirs = {
        "transformer.wte.weight": weights["embeddings.token.weight"],
        "transformer.wpe.weight": weights["embeddings.position.weight"],
    }
    for index in range(settings.num_layers):
        prefix = f"blocks.{index}."
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        qkv = [part[f"attention.{name}_proj.weight"] for name in "qkv"]
        block = {"attn.c_attn.weight": torch.cat(qkv)}
        block |= {their: part[our] for their, our in OURS.items() if our in part}
        if settings.num_experts:
            block |= experts_to_theirs(part, settings)
        theirs |= {f"transformer.h.{index}.{name}": value for name, value in block.items()}
    theirs["transformer.ln_f.weight"] = weights["norm.weight"]
    theirs["lm_head.weight"] = weights["embeddings.token.weight"]
    return {name: value.detach().contiguous() for name, value in theirs.items()}


def experts_to_theirs(part: Mapping[str, Tensor], settings: GPTConfig) -> dict[str, Tensor]:
    """The experts of a block, and the constants of a router that EHR_FM's default settings give."""
    threshold = torch.tensor([1e-9] + [0.2] * (settings.top_k - 1))
    down_EID = part["mlp.experts.down_proj.weight"].transpose(1, 2)
    return {
        "experts.c_fc": part["mlp.experts.up_proj.weight"].transpose(1, 2),
        "experts.c_proj": down_EID,
        "experts.geglu.mult_bias": torch.ones(down_EID.shape[1]),
        "router.threshold_train": threshold,
        "router.threshold_eval": threshold.clone(),
    }


def describe(settings: GPTConfig) -> dict[str, Any]:
    """What EHR_FM keeps as ``model_configs``."""
    found: dict[str, Any] = {
        "n_layer": settings.num_layers,
        "n_head": settings.num_heads,
        "n_embd": settings.width,
        "n_positions": settings.context_length,
        "n_inner": None if settings.mlp_ratio == 4 else settings.mlp_ratio * settings.width,
        "activation_function": "gelu",
        "bias": False,
        "dropout": settings.dropout,
        "resid_pdrop": settings.dropout,
        "embd_pdrop": settings.dropout,
        "attn_pdrop": settings.dropout,
        "n_experts": max(settings.num_experts, 1),
    }
    if settings.num_experts:
        found |= {
            "top_k": settings.top_k,
            "expert_hidden_mult": settings.mlp_ratio,
            "use_noisy_top_k": settings.noisy_router,
            "use_aux_loss": settings.balance_weight > 0,
            "aux_loss_weight": settings.balance_weight,
            "use_router_z_loss": settings.router_z_weight > 0,
            "router_z_loss_weight": settings.router_z_weight,
        }
    return found
