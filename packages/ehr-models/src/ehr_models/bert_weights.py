"""Weights to and from transformers' ``BertForMaskedLM``: published encoders come in, trained ones go out.

    model = import_bert(folder)          # config.json and model.safetensors
    state = bert_state(model)            # for BertForMaskedLM(...).load_state_dict

Only what computes the same is taken: post-LN, learned positions, a tied output layer, no columns.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.folder import read_json
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ehr_models.bert import Bert, EhrBertConfig

OUTER = {
    "embeddings.token": "bert.embeddings.word_embeddings",
    "embeddings.position": "bert.embeddings.position_embeddings",
    "embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "embeddings.norm": "bert.embeddings.LayerNorm",
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions",
}
INNER = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def their_name(ours: str) -> str:
    """Name of a tensor in ``BertForMaskedLM``."""
    module, _, leaf = ours.rpartition(".")
    if module.startswith("blocks."):
        _, number, inner = module.split(".", 2)
        return f"bert.encoder.layer.{number}.{INNER[inner]}.{leaf}"
    return f"{OUTER[module]}.{leaf}"


def bert_state(model: Bert) -> dict[str, Tensor]:
    """The model's tensors under transformers' names, with V rows in the table. Raises ConfigError where none fit."""
    check_same(model)
    V = model.config.vocab_size
    state = {their_name(name): value for name, value in model.state_dict().items()}
    table = "bert.embeddings.word_embeddings.weight"
    state[table] = state["cls.predictions.decoder.weight"] = state[table][:V]
    return state | {"cls.predictions.decoder.bias": state["cls.predictions.bias"]}


@torch.no_grad()
def load_bert(model: Bert, state: Mapping[str, Tensor]) -> None:
    """Take over tensors of a ``BertForMaskedLM`` of the same shape. Raises FormatError for one that does not fit."""
    check_same(model)
    for name, ours in model.state_dict().items():
        theirs = state.get(their_name(name))
        place = ours[: model.config.vocab_size] if name == "embeddings.token.weight" else ours
        if theirs is None or theirs.shape != place.shape:
            found = "is missing" if theirs is None else f"is {tuple(theirs.shape)} and not {tuple(place.shape)}"
            raise FormatError(f"the weights do not fit: {their_name(name)} {found}")
        place.copy_(theirs)


def check_same(model: Bert) -> None:
    """Raise ConfigError for a network that is not BERT's."""
    c = model.config
    same = not c.pre_norm and c.positions == "learned" and not c.position_column and c.tied and not c.columns
    if not same or c.embedding_size != c.hidden_size or getattr(c, "code_vectors", None):
        raise ConfigError(
            "only a post-LN encoder with learned positions, tied output layer and no columns is BERT; this one has more"
        )


def import_bert(folder: Path | str, pad_vocab_to_multiple_of: int = 64) -> Bert:
    """A model from a folder with BERT's config.json and model.safetensors. Raises FormatError."""
    folder = Path(folder)
    try:
        found = read_json(folder / "config.json", dict[str, Any])
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise FormatError(f"{folder} is no saved BERT with config.json and model.safetensors: {error}") from error
    if found.get("model_type") != "bert" or found.get("hidden_act") not in ("gelu", "relu", "silu"):
        raise FormatError(f"{folder}/config.json is not of a BERT with gelu, relu or silu")
    names = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
    names += ["max_position_embeddings", "hidden_act", "type_vocab_size", "layer_norm_eps"]
    model = Bert(
        EhrBertConfig(
            **{name: found[name] for name in names},
            dropout=found.get("hidden_dropout_prob", 0.0),
            attention_dropout=found.get("attention_probs_dropout_prob", 0.0),
            pad_vocab_to_multiple_of=pad_vocab_to_multiple_of,
        )
    )
    load_bert(model, state)
    return model
