"""Random numbers that are a function of what they are for, so that no draw depends on what is computed beside it.

Each token of the vocabulary gets a number from (seed, subject, time, draw, step, token), on any device. The largest
logit plus Gumbel noise is a sample of the softmax (Gumbel 1954; Maddison, Tarlow and Minka 2014, "A* sampling").

Shapes: R rows, N draws, P logits a row.
"""

import torch
from torch import Tensor

from ehr_models.hashing import GOLDEN, ROUNDS, mix


def draw_keys(seed: int, subject_id: int, time: int, draw_N: Tensor) -> Tensor:
    """(N,) int64: a key for each draw of a prompt."""
    key = mix(torch.tensor(seed, dtype=torch.int64) + GOLDEN)
    for part in (subject_id, time):
        key = mix(key + torch.tensor(part, dtype=torch.int64) * GOLDEN)
    return mix(key.to(draw_N.device) + (draw_N + 1) * GOLDEN)


class Gumbel:
    """Standard Gumbel noise (R, P) float32, negated, for keys and steps. Keeps its buffers between calls."""

    def __init__(self, rows: int, size: int, device: torch.device):
        self.step_P = torch.arange(1, size + 1, device=device) * GOLDEN
        self.hash_SP, self.shifted_SP = (torch.empty(rows, size, dtype=torch.int64, device=device) for _ in range(2))
        self.noise_SP = torch.empty(rows, size, device=device)

    def negated(self, key_R: Tensor, step_R: Tensor) -> Tensor:
        """``log(-log(u))`` with u uniform in (0, 1); the result is overwritten by the next call."""
        R = len(key_R)
        state_R = mix(key_R + (step_R + 1) * GOLDEN)
        x = torch.add(state_R[:, None], self.step_P, out=self.hash_SP[:R])
        y = self.shifted_SP[:R]
        # `mix` in place, without its last line, which does not reach the 23 bits that are used.
        for shift, mask, factor in ROUNDS:
            torch.bitwise_right_shift(x, shift, out=y)
            x.bitwise_xor_(y.bitwise_and_(mask)).mul_(factor)
        torch.bitwise_right_shift(x, 41, out=y)
        noise = self.noise_SP[:R].copy_(y.bitwise_and_(0x7FFFFF))
        return noise.add_(0.5).mul_(2.0**-23).log_().neg_().log_()  # exact in float32: with one bit more u could be 1
