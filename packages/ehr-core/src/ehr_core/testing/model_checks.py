"""Checks of models; they need torch.

A model is checked with its default settings, made small, and with every entry of ``variants``, a ``ClassVar`` that its
settings may have: ``{"rotary": {"positions": "rotary"}}``. What a model can do it says in ``provides``. What else it
need not be able to do it declares:

    supports_gradient_checkpointing = False    transformers' own flag; asking for it must be refused
    no get_input_embeddings                    its vocabulary cannot grow
    not_adapted = ("router",)                  names of linear layers within blocks that adapters leave alone
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import torch

from ehr_core.batch import Batch
from ehr_core.errors import EhrError, NotApplicable
from ehr_core.formats.vocabulary import MASK
from ehr_core.protocols import PROVISIONS
from ehr_core.testing.base import Check
from ehr_core.testing.model_maker import (
    Maker,
    V,
    batch_of,
    close,
    every_variant,
    hidden_of,
    refuses,
    tokens_of,
)
from ehr_core.testing.tiny import grammar


@every_variant
def check_model_fields(make: Maker, folder: Path) -> None:
    """Its width is that of its hidden states, its positions are a number or None, and what it provides has a name."""
    model = make()
    width = hidden_of(model, batch_of(tokens_of())).shape[-1]
    assert model.width == width, f"width is {model.width}, and hidden states have {width}"
    limit = model.max_positions
    assert limit is None or (isinstance(limit, int) and limit > 0), f"max_positions is {limit!r}; give a number or None"
    unknown = [name for name in model.provides if name not in PROVISIONS]
    assert not unknown, f"provides has {unknown[0]!r}; allowed: {', '.join(PROVISIONS)}"
    assert "cache" not in model.provides or "causal" in model.provides, "a model with a cache is causal"


@every_variant
def check_model_shapes(make: Maker, folder: Path) -> None:
    """Hidden states are (B, T, D), logits of real tokens finite, and ids beyond the vocabulary impossible."""
    model = make()
    hidden = hidden_of(model, batch_of(tokens_of()))
    assert hidden.shape[:2] == (2, 24)
    logits = model.lm_logits(hidden)
    assert torch.isfinite(logits[..., :V]).all()
    assert torch.isneginf(logits[..., V:]).all(), "an id beyond the vocabulary could be predicted"


@every_variant
@torch.no_grad()
def check_model_is_deterministic(make: Maker, folder: Path) -> None:
    """The same input gives the same output twice in evaluation."""
    model, batch = make(), batch_of(tokens_of())
    first = hidden_of(model, batch)
    torch.manual_seed(1)
    assert torch.equal(hidden_of(model, batch), first), "chance is at work in evaluation"


@every_variant
@torch.no_grad()
def check_model_causality(make: Maker, folder: Path) -> None:
    """For causal models: other tokens in the future leave earlier outputs as they are. Encoders see them."""
    model = make()
    tokens = tokens_of()
    changed = tokens.clone()
    changed[:, 16:] = 7 + (changed[:, 16:] + 5) % (V - 7)
    one, two = hidden_of(model, batch_of(tokens)), hidden_of(model, batch_of(changed))
    assert not torch.allclose(one[:, 16:], two[:, 16:])
    if "causal" in model.provides:
        close(two[:, :16], one[:, :16], "later tokens change earlier outputs")
    else:
        assert not torch.allclose(one[:, :16], two[:, :16]), "it is causal, and provides does not say so"


@every_variant
@torch.no_grad()
def check_model_batch_invariance(make: Maker, folder: Path) -> None:
    """A row gives the same output alone and beside others."""
    model, tokens = make(), tokens_of(5, 13)
    together = hidden_of(model, batch_of(tokens))
    for row in range(5):
        close(together[row], hidden_of(model, batch_of(tokens[row : row + 1]))[0], "the rest of the batch matters")


@every_variant
@torch.no_grad()
def check_model_padding_invariance(make: Maker, folder: Path) -> None:
    """A window gives the same output alone, padded on either side, and beside a row of padding; padding is finite."""
    model, window, padding = make(), tokens_of(1, 9), torch.zeros(1, 4, dtype=torch.int64)
    alone = hidden_of(model, batch_of(window))[0]
    ones, nothing = torch.ones_like(window), torch.zeros(1, 13, dtype=torch.int64)
    for parts, segments, start in (
        ([window, padding], [ones, padding], 0),
        ([padding, window], [padding, ones], 4),
    ):
        tokens, segment_BT = (torch.cat([torch.cat(found, 1), nothing]) for found in (parts, segments))
        padded = hidden_of(model, batch_of(tokens, segment_BT))
        close(padded[0, start : start + 9], alone, f"padding {'before' if start else 'behind'} a window matters")
        assert torch.isfinite(padded).all(), "padding gave NaN"


@every_variant
@torch.no_grad()
def check_model_packing_invariance(make: Maker, folder: Path) -> None:
    """A window gives the same output alone and packed beside others."""
    model = make()
    first, second = tokens_of(1, 9), tokens_of(2, 12)[1:]
    row = torch.cat([first, second, torch.zeros(1, 3, dtype=torch.int64)], dim=1)
    packed = hidden_of(model, batch_of(row, torch.tensor([[1] * 9 + [2] * 12 + [0] * 3])))[0]
    close(packed[:9], hidden_of(model, batch_of(first))[0], "the first window sees what shares its row")
    close(packed[9:21], hidden_of(model, batch_of(second))[0], "the second window sees what shares its row")


@every_variant
@torch.no_grad()
def check_model_cache(make: Maker, folder: Path) -> None:
    """Contexts that go on token by token, some sharing their beginning, give what a pass over all of them gives."""
    model = make()
    if "cache" not in model.provides:
        raise NotApplicable("it provides no cache, so that no trajectories are drawn from it")
    try:
        cache = model.make_cache(rows=4, length=24)
    except EhrError as error:
        raise AssertionError(f"it provides a cache, and make_cache refuses: {error}") from error
    tokens, lengths = tokens_of(3, 20), [11, 11, 6]
    # Row 2 holds a context of its own, and rows 0 and 1 begin with what row 3 holds.
    tokens[1, :11] = tokens[0, :11]
    contexts = torch.stack([tokens[0, :11], tokens[2, :11]])
    contexts[1, 6:] = 0
    cache.prefill([3, 2], contexts.device)
    prefilled = model(contexts, cache=cache).last_hidden_state
    close(prefilled[1, :6], hidden_of(model, _bare(tokens[2:, :6]))[0], "a context that is kept, padded")
    cache.share(3, [0, 1], 11)
    for _ in range(5):
        at = torch.tensor(lengths)
        cache.step(lengths, at)
        found = model(tokens[torch.arange(3), at][:, None], at[:, None], cache=cache).last_hidden_state[:, 0]
        lengths = [length + 1 for length in lengths]
        for row, length in enumerate(lengths):
            whole = hidden_of(model, _bare(tokens[row : row + 1, :length]))[0, -1]
            close(found[row], whole, f"row {row} at length {length}, cached and not")


def _bare(tokens_BT: torch.Tensor) -> Batch:
    """A batch without columns, which a model that has a cache does not need."""
    return dataclasses.replace(batch_of(tokens_BT), columns={})


def _loss(model: Any, tokens: torch.Tensor) -> Any:
    logits = model.lm_logits(hidden_of(model, batch_of(tokens)))[..., :V]
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _assert_all_learn(model: Any) -> None:
    wanted = [name for name, p in model.named_parameters() if p.requires_grad]
    found = _gradients(model)
    silent = [name for name in wanted if name not in found or not found[name].any()]
    assert not silent, f"no gradient reaches {silent}"
    broken = [name for name, gradient in found.items() if not torch.isfinite(gradient).all()]
    assert not broken, f"gradients of {broken} are not finite"


@every_variant
def check_model_gradients(make: Maker, folder: Path) -> None:
    """Every parameter gets a gradient from a language-model loss."""
    model = make().train()
    _loss(model, tokens_of(4)).backward()
    _assert_all_learn(model)


@every_variant
def check_model_gradient_checkpointing(make: Maker, folder: Path) -> None:
    """Gradients are the same when states are computed again in the backward pass; a model that cannot, refuses."""
    model = make().train()
    if not model.supports_gradient_checkpointing:
        refuses(model.gradient_checkpointing_enable, "gradient checkpointing, which is not supported,", ValueError)
        return
    calls: list[None] = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append(None))
    found, called = [], []
    for _ in range(2):
        calls.clear()
        torch.manual_seed(5)
        _loss(model, tokens_of(4)).backward()
        found.append(_gradients(model))
        called.append(len(calls))
        model.zero_grad()
        model.gradient_checkpointing_enable()
    assert called[1] > called[0], "nothing was computed again"
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        close(found[1][name], gradient, f"the gradient of {name} with and without checkpointing")


@every_variant
def check_model_adapters(make: Maker, folder: Path) -> None:
    """Low-rank adapters fit on every linear layer of the blocks, learn in every tensor, and can be merged."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise NotApplicable("peft is not installed") from None
    model, batch = make(), batch_of(tokens_of())
    left_out = set(getattr(model, "not_adapted", ()))
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and any(part.isdigit() for part in name.split("."))
        and not left_out & set(name.split("."))
    ]
    if not names:
        raise NotApplicable("it has no linear layers in numbered blocks")
    before = hidden_of(model, batch).detach()
    # Not from zero: at the start one half of an adapter keeps gradients from the other.
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=names, init_lora_weights=False)).train()
    _loss(adapted, tokens_of(4)).backward()
    _assert_all_learn(adapted)
    with torch.no_grad():
        found = hidden_of(adapted.eval(), batch)
        assert not torch.allclose(found, before, atol=1e-3), "the adapter changes nothing"
        merged = adapted.merge_and_unload()
        assert type(merged) is type(model)
        close(hidden_of(merged, batch), found, "merged and not")


@every_variant
@torch.no_grad()
def check_model_survives_saving(make: Maker, folder: Path) -> None:
    """save_pretrained and from_pretrained keep every bit."""
    model, batch = make(), batch_of(tokens_of())
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder).eval()
    assert model.state_dict().keys() == again.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), f"{name} is another after loading"
    one, two = hidden_of(model, batch), hidden_of(again, batch)
    assert torch.equal(one, two), "outputs are others after loading"
    assert torch.equal(model.lm_logits(one), again.lm_logits(two))


@every_variant
@torch.no_grad()
def check_model_resizing(make: Maker, folder: Path) -> None:
    """A larger or smaller vocabulary leaves outputs of the tokens that stay as they are; others cannot be predicted."""
    batch = batch_of(7 + tokens_of() % (V - 20))
    for size in (V + 70, V - 10):
        model = make()
        try:
            model.get_input_embeddings()
        except NotImplementedError:
            raise NotApplicable("it has no get_input_embeddings, so that its vocabulary cannot grow") from None
        before = hidden_of(model, batch)
        kept = min(size, V)
        expected = model.lm_logits(before)[..., :kept]
        model.resize_token_embeddings(size)
        after = hidden_of(model, batch)
        assert torch.equal(before, after), "tokens that stay have other vectors"
        logits = model.lm_logits(after)
        close(logits[..., :kept], expected, "logits of tokens that stay")
        assert torch.isfinite(logits[..., :size]).all()
        assert torch.isneginf(logits[..., size:]).all(), "an id beyond the vocabulary could be predicted"
        assert torch.isfinite(hidden_of(model, batch_of(torch.full((1, 5), size - 1)))).all()
        model.save_pretrained(folder / str(size))
        assert torch.equal(hidden_of(type(model).from_pretrained(folder / str(size)).eval(), batch), after)


@every_variant
def check_model_refuses_what_does_not_fit(make: Maker, folder: Path) -> None:
    """Ids beyond the vocabulary, contexts beyond the positions, and sizes that cannot be, are one clear line each."""
    model = make()
    for wrong in (100 * V, -1):
        tokens = tokens_of()
        tokens[1, 5] = wrong
        error = refuses(functools.partial(hidden_of, model, batch_of(tokens)), f"token id {wrong}", IndexError)
        named = isinstance(error, IndexError) or str(wrong) in str(error)
        assert named, f"the error does not name the id {wrong}: {error}"
    limit = model.max_positions
    if limit and limit <= 512:
        error = refuses(lambda: hidden_of(model, batch_of(tokens_of(1, limit + 1))), "a context beyond the positions")
        assert str(limit) in str(error), f"the error does not name the limit of {limit}: {error}"
    names = {field.name for field in dataclasses.fields(make.settings())}
    if {"width", "num_heads"} <= names:
        refuses(lambda: make.build(make.settings(width=30, num_heads=4)), "a width of 30 with 4 heads")
        refuses(lambda: make.build(make.settings(num_heads=0)), "a model without heads")
    if {"width", "num_heads", "positions"} <= names:
        refuses(
            lambda: make.build(make.settings(width=36, num_heads=4, positions="rotary")),
            "rotary positions in heads of width 9",
        )


@every_variant
def check_model_learns_the_grammar(make: Maker, folder: Path) -> None:
    """It learns the grammar: each next token, or, for encoders, which word a sentence repeats."""
    model = make(sharp=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = [math.inf] * 5
    for step in range(150):
        tokens = torch.from_numpy(grammar(16, 12, 7 + WORDS, seed=step))
        causal = "causal" in model.provides
        loss = _loss(model, tokens) if causal else _masked_loss(model, tokens[:, :1].expand(16, 12).contiguous())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses = [*losses[1:], loss.item()]
        if sum(losses) / 5 < LEARNT:
            return
    raise AssertionError(f"a loss of {losses[-1]:.2f} after 150 steps; a guess among {WORDS} words has 2.08")


WORDS, LEARNT = 8, 1.0


def _masked_loss(model: Any, tokens: torch.Tensor) -> Any:
    """Every fourth token is hidden."""
    hidden = torch.zeros_like(tokens, dtype=torch.bool)
    hidden[:, 1::4] = True
    logits = model.lm_logits(hidden_of(model, batch_of(tokens.masked_fill(hidden, MASK))))[hidden][:, :V]
    return torch.nn.functional.cross_entropy(logits.float(), tokens[hidden])


MODEL_CHECKS: list[Check] = [
    check_model_fields,
    check_model_shapes,
    check_model_is_deterministic,
    check_model_causality,
    check_model_batch_invariance,
    check_model_padding_invariance,
    check_model_packing_invariance,
    check_model_cache,
    check_model_gradients,
    check_model_gradient_checkpointing,
    check_model_adapters,
    check_model_survives_saving,
    check_model_resizing,
    check_model_refuses_what_does_not_fit,
    check_model_learns_the_grammar,
]
