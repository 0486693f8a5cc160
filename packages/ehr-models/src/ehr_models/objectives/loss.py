"""How a network's auxiliary losses enter an objective's."""

from typing import Any

from ehr_core.batch import Loss
from torch import Tensor


def with_auxiliary(total: Tensor, count: Tensor, output: Any) -> Loss:
    """Loss of a sum over ``count`` items and the auxiliary losses of a model's output, each (sum, count) and weighted.

    An auxiliary loss is a mean beside the mean of the items, so that it enters the sum ``count`` times. The part
    ``auxiliary`` is what they add up to; the ``metrics`` of the output are further parts.
    """
    losses, parts = output.get("losses") or {}, dict(output.get("metrics") or {})
    if not losses:
        return Loss(total, count, parts)
    auxiliary = sum((value / number for value, number in losses.values()), start=total.new_zeros(())) * count
    return Loss(total + auxiliary, count, {"auxiliary": (auxiliary.detach(), count), **parts})
