"""A plugin for the tests alone: a two-layer decoder with dropout, next-token and binary objectives."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from ehr_core import Component, hookimpl
from ehr_core.batch import Loss
from ehr_core.outcomes import KINDS
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


class Block(nn.Module):
    def __init__(self, D, dropout):
        super().__init__()
        self.qkv, self.drop = nn.Linear(D, 3 * D), nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x, see):
        q, k, v = F.layer_norm(self.qkv(x), (3 * x.shape[-1],)).chunk(3, -1)
        x = x + self.drop(F.scaled_dot_product_attention(q, k, v, attn_mask=see))
        return x + self.drop(self.mlp(F.layer_norm(x, (x.shape[-1],))))


class Tiny(PreTrainedModel):
    config_class = TinyHF
    _no_split_modules = ["Block"]  # noqa: RUF012
    provides = ("causal",)

    def __init__(self, config):
        super().__init__(config)
        D = self.width = config.hidden_size
        self.max_positions = config.max_position_embeddings
        self.token, self.place = nn.Embedding(config.vocab_size, D), nn.Embedding(config.max_position_embeddings, D)
        self.blocks = nn.ModuleList(Block(D, config.dropout) for _ in range(2))
        self.norm = nn.LayerNorm(D)
        self.out = nn.Linear(D, config.vocab_size)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, std=0.1)

    def forward(self, input_ids, position_ids=None, segment_ids=None, **columns):
        x = self.token(input_ids) + self.place(position_ids)
        T = x.shape[1]
        see = (segment_ids[:, :, None] == segment_ids[:, None, :]) & torch.ones(T, T, dtype=torch.bool).tril()
        for block in self.blocks:
            x = block(x, see)
        x = self.norm(x)
        return ModelOutput(last_hidden_state=x * self.config.explode if self.config.explode else x, losses={})

    def lm_logits(self, hidden):
        return self.out(hidden)

    def get_input_embeddings(self):
        return self.token

    def resize_token_embeddings(self, size, **kwargs):
        for name, module in (("token", nn.Embedding(size, self.width)), ("out", nn.Linear(self.width, size))):
            old = getattr(self, name)
            with torch.no_grad():
                module.weight[: len(old.weight)] = old.weight
            setattr(self, name, module)
        self.config.vocab_size = size
        return self.token


def build(settings, vocabulary_size, columns=()):
    import os

    if settings.crash_rank == int(os.environ.get("RANK", "0")):
        raise RuntimeError("made to crash")
    model = Tiny(TinyHF(vocabulary_size, settings.width, settings.context_length, settings.dropout, settings.explode))
    if settings.unused:
        model.idle = nn.Parameter(torch.zeros(3))
    return model


@dataclass
class TinyBothConfig(TinyConfig):
    """The same, seeing both ways."""

    name: str = "tiny_both"


def build_both(settings, vocabulary_size, columns=()):
    model = build(settings, vocabulary_size, columns)
    model.provides = ()
    return model


@dataclass
class TinyNextConfig:
    name: str = "tiny_next"


class TinyNext(nn.Module):
    def __init__(self, settings, width, vocabulary, question):
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
    weight: float = 1.0


class TinyHead(nn.Module):
    """A linear head on the last visible token, for every kind."""

    def __init__(self, settings, width, vocabulary, question):
        super().__init__()
        self.settings, self.question = settings, question
        self.head = nn.Linear(width, question.num_outputs)

    def outputs(self, model, batch):
        hidden = model(**batch.inputs()).last_hidden_state.flatten(0, 1)[batch.last_N]
        found = self.head(hidden).float()
        return found if self.question.names else found.squeeze(-1)

    def loss(self, model, batch):
        found, label = self.outputs(model, batch), batch.label_N
        kind, count = self.question.kind, torch.tensor(len(label))
        if kind == "binary":
            total = F.binary_cross_entropy_with_logits(found, label, reduction="sum")
        elif kind == "multiclass":
            total = F.cross_entropy(found, label.long(), reduction="sum")
        elif kind == "multilabel":
            known = ~label.isnan()
            total, count = F.binary_cross_entropy_with_logits(found[known], label[known], reduction="sum"), known.sum()
        elif kind == "regression":
            total = (found - label).square().sum()
        else:  # an exponential time to the event
            total = (found.exp() * label[:, 0] - label[:, 1] * found).sum()
        return Loss(total, count)

    def predict(self, model, batch):
        found = self.outputs(model, batch)
        kind = self.question.kind
        if kind == "multiclass":
            return found.softmax(-1)
        return found.sigmoid() if kind in ("binary", "multilabel") else found


@dataclass
class TinyAnyConfig:
    name: str = "tiny_any"


@hookimpl
def ehr_models() -> Iterator[Component]:
    yield Component(name="tiny", target="ehr_train_tiny:build", config=TinyConfig)
    yield Component(name="tiny_both", target="ehr_train_tiny:build_both", config=TinyBothConfig)


@hookimpl
def ehr_objectives() -> Iterator[Component]:
    target = "ehr_train_tiny:TinyHead"
    yield Component(name="tiny_next", target="ehr_train_tiny:TinyNext", config=TinyNextConfig, needs=("causal",))
    yield Component(name="tiny_binary", target=target, config=TinyBinaryConfig, outcomes=("binary",))
    yield Component(name="tiny_any", target=target, config=TinyAnyConfig, outcomes=KINDS)
