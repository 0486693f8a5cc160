"""Generation with networks of transformers: their layers, on keys and values that `ehr_models.layers.cache` keeps.

While a cache is in use, the inner network's attention is `attend_to_cache` in the place of its own kernel. That serves
every architecture whose layers are joined by softmax attention alone. Others (Mamba's states, capped scores, windows
that are shorter than a context) are recognised, by what they ask for or by a trial with a few tokens, and refused.

Shapes: B rows, T positions, H heads, C width of a head, D width.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from ehr_models.layers.cache import KVCache

NAME = "ehr_cache"
_IN_USE: ContextVar[KVCache] = ContextVar(NAME)
UNKNOWN = ("softcap", "s_aux", "position_bias", "alibi")
"""What an architecture may ask its attention to do, and `ehr_models.layers.cache` cannot."""


class CannotKeep(Exception):
    """The network computes something that keys and values do not hold."""


def attend_to_cache(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (B, H, T, C), keys and values of perhaps fewer heads, to (B, T, H, C)."""
    cache = _IN_USE.get()
    if attention_mask is not None or any(arguments.get(name) is not None for name in UNKNOWN):
        raise CannotKeep
    scaling = arguments.get("scaling")
    if scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return cache.layers[module.layer_idx].attend(q, k, v), None


AttentionInterface.register(NAME, attend_to_cache)


@contextlib.contextmanager
def in_use(cache: KVCache, config: Any) -> Iterator[None]:
    """Attention of the networks of this configuration goes to the cache."""
    own, token = config._attn_implementation, _IN_USE.set(cache)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own
        _IN_USE.reset(token)


@torch.no_grad()
def serves(model: Any, token_BT: Tensor) -> bool:
    """Whether contexts that go on token by token give what the network itself gives; tried with these."""
    B, T = token_BT.shape
    cache, first = KVCache(model.config.num_hidden_layers, B, T), T // 2
    training = model.training
    model.eval()
    try:
        expected = model.run(token_BT)
        cache.prefill(range(B), token_BT.device)
        found = [model(token_BT[:, :first], cache=cache).last_hidden_state]
        for place in range(first, T):
            at_B = torch.full((B,), place, device=token_BT.device)
            cache.step([place] * B, at_B)
            found.append(model(token_BT[:, place, None], at_B[:, None], cache=cache).last_hidden_state)
    except (CannotKeep, RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    finally:
        model.train(training)
    tolerance = 64 * torch.finfo(expected.dtype).eps * max(1.0, float(expected.abs().max()))
    return torch.allclose(torch.cat(found, dim=1), expected, rtol=0.0, atol=tolerance)
