"""``geneformer``: BERT over ranked tokens (Theodoris et al. 2023), with Transformer Engine and FP8 where there are.

With ``layers=te`` the linear layers of the blocks are Transformer Engine's. Attention, norms, activation, dropout and
the names of all tensors stay what they are, so that both kinds load each other's weights.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ehr_core.errors import ConfigError
from ehr_models.bert import Bert, make_config
from ehr_models.code_vectors import started
from torch import nn

from ehr_geneformer.plugin import GeneformerConfig

FP8_CAPABILITY = (8, 9)
"""Ada; Hopper is 9.0."""
FP8_ROWS = 8
"""A product in 8 bits has a multiple of so many rows; its widths, of 16."""


class Geneformer(Bert):
    """`ehr_models.bert.Bert` with a precision of its own."""

    precision = "trainer"
    said: frozenset[str] | set[str] = frozenset()
    """Reasons that were given."""
    engine: Any = None
    """``transformer_engine.pytorch``, if its layers are used."""

    def forward(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As `Bert`, in the precision of the settings."""
        with self.arithmetic(input_ids):
            return super().forward(input_ids, *args, **kwargs)

    def arithmetic(self, token_BT: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
        """The context for the blocks; says on stderr, once a reason, when FP8 was asked for and cannot be."""
        if self.precision == "trainer":
            return contextlib.nullcontext()
        reason = why_no_fp8(token_BT.device, self.engine) or self.why_not_now(token_BT)
        stack = contextlib.ExitStack()
        stack.enter_context(torch.autocast(token_BT.device.type, dtype=torch.bfloat16))
        if reason is None:
            stack.enter_context(self.engine.fp8_autocast(enabled=True, fp8_recipe=recipe()))
        elif reason not in self.said:
            self.said = {*self.said, reason}
            print(f"model.precision=fp8 is not possible: {reason}; going on in bf16", file=sys.stderr)
        return stack

    def why_not_now(self, token_BT: torch.Tensor) -> str | None:
        """What stands in the way of FP8 in this batch, or None."""
        if token_BT.numel() % FP8_ROWS:
            return f"batches of a number of positions that is no multiple of {FP8_ROWS} cannot be computed so"
        if self.training and any(getattr(block, "gradient_checkpointing", False) for block in self.blocks):
            return "with gradient checkpointing, states are computed again outside of it"
        return None


def why_no_fp8(device: torch.device, engine: Any) -> str | None:
    """What stands in the way of FP8, or None."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has no FP8"
    if engine is None:
        return "model.layers is not te"
    return None


def recipe() -> Any:
    """FP8 as published: E4M3 forward, E5M2 backward, scales from the largest of the last 16 values."""
    found = importlib.import_module("transformer_engine.common.recipe")
    return found.DelayedScaling(fp8_format=found.Format.HYBRID, amax_history_len=16, amax_compute_algo="max")


def load_engine() -> Any:
    """``transformer_engine.pytorch``. Raises ConfigError where it cannot be used."""
    if not torch.cuda.is_available():
        raise ConfigError("model.layers=te needs a CUDA device, and there is none; use model.layers=torch")
    try:
        return importlib.import_module("transformer_engine.pytorch")
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"model.layers=te needs Transformer Engine, which cannot be imported ({str(error).splitlines()[0]}): "
            "install transformer-engine[pytorch], or use model.layers=torch"
        ) from error


def without_extra_state(linear: type[nn.Module]) -> type[nn.Module]:
    """A linear layer that keeps weight and bias only, so that checkpoints are those of the other kind.

    The history of FP8 scales is not kept: a run that continues starts it anew.
    """
    plain = {"get_extra_state": nn.Module.get_extra_state, "set_extra_state": nn.Module.set_extra_state}
    return type("Linear", (linear,), plain)


def swap_linears(model: Bert, make: Callable[..., nn.Module]) -> None:
    """Put linear layers ``make(in, out, bias=...)`` in the place of those of the blocks; weights are kept."""
    for module in list(model.blocks.modules()):
        for name, old in list(module.named_children()):
            if isinstance(old, nn.Linear):
                new = make(old.in_features, old.out_features, bias=old.bias is not None).to(old.weight)
                new.load_state_dict(old.state_dict(), strict=False)
                setattr(module, name, new)


def build(settings: GeneformerConfig, vocabulary_size: int, columns: Sequence[str] = ()) -> Geneformer:
    """A new `Geneformer`. Raises ConfigError for a shape that cannot be, or layers that are not there."""
    for name, words in (("layers", ("torch", "te")), ("precision", ("trainer", "fp8"))):
        if getattr(settings, name) not in words:
            raise ConfigError(f"model.{name} is {getattr(settings, name)!r}; it must be one of {', '.join(words)}")
    if settings.precision == "fp8" and (settings.width % 16 or settings.mlp_width % 16):
        raise ConfigError(f"FP8 needs widths that are multiples of 16, not {settings.width} and {settings.mlp_width}")
    engine = load_engine() if settings.layers == "te" else None
    config = make_config(settings, vocabulary_size, columns)
    model: Geneformer = started(Geneformer, config, settings.code_vectors)
    model.precision, model.engine = settings.precision, engine
    if engine is not None:
        swap_linears(model, without_extra_state(engine.Linear))
    return model
