"""A plugin for the tests alone: a two-layer decoder with dropout, next-token and binary objectives."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from ehr_core import Component, hookimpl
from ehr_core.batch import Loss
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class TinyConfig:
    name: str = "tiny"
    width: int = 32
    context_length: int = 64
    dropout: float = 0.0
    unused: bool = False
    """Have a parameter that no loss depends on."""
    explode: float = 0.0
    """Multiply the hidden states by this; a huge number makes the loss NaN."""
    crash_rank: int = -1


class TinyHF(PretrainedConfig):
    model_type = "ehr-tiny-test"

    def __init__(self, vocab_size=16, hidden_size=32, max_position_embeddings=64, dropout=0.0, explode=0.0, **kwargs):
        self.vocab_size, self.hidden_size, self.dropout, self.explode = vocab_size, hidden_size, dropout, explode
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)


class Tiny(PreTrainedModel):
    config_class = TinyHF
    causal = True

    def __init__(self, config):
        super().__init__(config)
        D = config.hidden_size
        self.token, self.place = nn.Embedding(config.vocab_size, D), nn.Embedding(config.max_position_embeddings, D)
        self.qkv = nn.ModuleList(nn.Linear(D, 3 * D) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D)) for _ in range(2))
        self.norm = nn.LayerNorm(D)
        self.out = nn.Linear(D, config.vocab_size)
        self.drop = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, std=0.1)

    def forward(self, input_ids, position_ids=None, segment_ids=None, **columns):
        x = self.token(input_ids) + self.place(position_ids)
        T = x.shape[1]
        see = (segment_ids[:, :, None] == segment_ids[:, None, :]) & torch.ones(T, T, dtype=torch.bool).tril()
        for qkv, mlp in zip(self.qkv, self.mlp, strict=True):
            q, k, v = F.layer_norm(qkv(x), (3 * x.shape[-1],)).chunk(3, -1)
            x = x + self.drop(F.scaled_dot_product_attention(q, k, v, attn_mask=see))
            x = x + self.drop(mlp(F.layer_norm(x, (x.shape[-1],))))
        x = self.norm(x)
        return ModelOutput(last_hidden_state=x * self.config.explode if self.config.explode else x, losses={})

    def lm_logits(self, hidden):
        return self.out(hidden)


def build(settings, vocabulary_size, columns=()):
    import os

    if settings.crash_rank == int(os.environ.get("RANK", "0")):
        raise RuntimeError("made to crash")
    model = Tiny(TinyHF(vocabulary_size, settings.width, settings.context_length, settings.dropout, settings.explode))
    if settings.unused:
        model.idle = nn.Parameter(torch.zeros(3))
    return model


@dataclass
class TinyNextConfig:
    name: str = "tiny_next"


class TinyNext(nn.Module):
    labelled = False

    def __init__(self, settings, width):
        super().__init__()

    def loss(self, model, batch):
        hidden = model(**batch.inputs()).last_hidden_state[:, :-1]
        target = batch.token_BT[:, 1:]
        same = (batch.segment_BT[:, 1:] == batch.segment_BT[:, :-1]) & (batch.segment_BT[:, 1:] != 0)
        wanted = same & ~batch.static_BT[:, 1:]
        total = F.cross_entropy(model.lm_logits(hidden)[wanted].float(), target[wanted], reduction="sum")
        return Loss(total, wanted.sum(), {"again": (total.detach(), wanted.sum())})


@dataclass
class TinyBinaryConfig:
    name: str = "tiny_binary"


class TinyBinary(nn.Module):
    labelled = True

    def __init__(self, settings, width):
        super().__init__()
        self.head = nn.Linear(width, 1)

    def _logits(self, model, batch):
        hidden = model(**batch.inputs()).last_hidden_state.flatten(0, 1)[batch.last_N]
        return self.head(hidden).squeeze(-1).float()

    def loss(self, model, batch):
        logits = self._logits(model, batch)
        total = F.binary_cross_entropy_with_logits(logits, batch.label_N, reduction="sum")
        return Loss(total, torch.tensor(len(logits)))

    def predict(self, model, batch):
        return self._logits(model, batch).sigmoid()


@hookimpl
def ehr_models() -> Iterator[Component]:
    yield Component(name="tiny", target="ehr_train_tiny:build", config=TinyConfig)


@hookimpl
def ehr_objectives() -> Iterator[Component]:
    yield Component(name="tiny_next", target="ehr_train_tiny:TinyNext", config=TinyNextConfig)
    yield Component(name="tiny_binary", target="ehr_train_tiny:TinyBinary", config=TinyBinaryConfig)
