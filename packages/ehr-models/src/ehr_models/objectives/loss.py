"""How a network's auxiliary losses enter an objective's."""

from ehr_core.batch import Loss
from torch import Tensor

Pairs = dict[str, tuple[Tensor, Tensor]]


def with_auxiliary(total: Tensor, count: Tensor, losses: Pairs | None, metrics: Pairs | None = None) -> Loss:
    """Loss of a sum over ``count`` items and a network's auxiliary losses, each (sum, count) and weighted already.

    An auxiliary loss is a mean beside the mean of the items, so that it enters the sum ``count`` times. The part
    ``auxiliary`` is what they add up to; the network's ``metrics`` are further parts.
    """
    parts = dict(metrics or {})
    if not losses:
        return Loss(total, count, parts)
    auxiliary = sum((value / number for value, number in losses.values()), start=total.new_zeros(())) * count
    return Loss(total + auxiliary, count, {"auxiliary": (auxiliary.detach(), count), **parts})
