"""SplitMix64 on tensors (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").

Random numbers that follow from what they are for, and from no state: they are the same on every device and whatever is
computed beside them. torch's own generators give other numbers on a GPU than on the CPU, and in another batch.
"""

from torch import Tensor

GOLDEN = -7046029254386353131
"""2**64 / golden ratio as int64: the step from one number to the next."""
ROUNDS = ((30, 0x3FFFFFFFF, -4658895280553007687), (27, 0x1FFFFFFFFF, -7723592293110705685))
"""Shift, mask of what stays after it (int64 shifts bring in the sign), factor."""


def mix(x: Tensor) -> Tensor:
    """A bijection of int64 that scatters bits; integers wrap."""
    for shift, mask, factor in ROUNDS:
        x = (x ^ ((x >> shift) & mask)) * factor
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
