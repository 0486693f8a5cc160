"""Trajectories that are under way, as one row each of a few tensors on the device.

Shapes: S rows, R of them in use, B budget of new tokens, P logits a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ehr_core.constants import SECOND_US
from ehr_core.errors import DataError
from torch import Tensor

from ehr_models.generation.sampling import Sampler

GOING, STOPPED, LATE, SPENT = range(4)
REASONS = ("", "stop_token", "horizon", "budget")
"""Why a trajectory ended, by number; GOING is not over."""


@dataclass(frozen=True)
class Prompt:
    """What a model may see of one subject at one time, as it read windows in training."""

    subject_id: int
    time: int
    """Prediction time in microseconds since 1970."""
    tokens: np.ndarray
    """(n,) int: the static prefix, then the newest events of the timeline up to ``time``."""
    prefix: int = 0
    """How many tokens at the start are the static prefix, which stays when a full context is cut."""
    last_time: int | None = None
    """When its newest event was, in microseconds since 1970; None: at ``time``. What passes until ``time`` is not part
    of a trajectory's time, and of its horizon."""

    @property
    def waited(self) -> int:
        """Microseconds from the newest event to the prediction time."""
        return 0 if self.last_time is None else self.time - self.last_time


@dataclass(frozen=True)
class Trajectory:
    """One draw of what comes after a prompt."""

    subject_id: int
    time: int
    """The prompt's."""
    draw: int
    tokens: np.ndarray
    """(m,) int32: new tokens, with the one that it stopped at."""
    stop_reason: str
    """``stop_token``, ``horizon`` or ``budget``."""
    seconds: float
    """Time since the prediction time, by its interval tokens; below 0 where it ends before that."""


@dataclass(frozen=True)
class Rules:
    """When a trajectory ends."""

    stop_P: Tensor
    """bool: tokens to stop at."""
    interval_P: Tensor
    """int64 microseconds that each token stands for; 0 for all but interval tokens."""
    horizon: int
    """Microseconds after the prediction time; more than this ends it."""
    budget: int
    """New tokens, at most."""


@dataclass
class Running:
    """What the host knows of a row: whose it is, and how many tokens the cache holds of it."""

    prompt: Prompt
    draw: int
    length: int
    drawn: int = 1
    """New tokens, had it not ended since the host last looked. The first one comes with the prompt."""


class Rows:
    """Rows 0 to R-1 are in use. Nothing here waits for the device but `look` and `tokens_of`."""

    def __init__(self, rows: int, rules: Rules, device: torch.device):
        self.rules, self.device = rules, device
        self.running: list[Running] = []

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.token, self.key, self.count, self.micros, self.reason, self.length = (zeros(rows) for _ in range(6))
        self.out = zeros(rows, rules.budget + 1, dtype=torch.int32)  # rows that have ended write behind their tokens
        self.index = torch.arange(rows, device=device)

    def start(self, row_N: Sequence[int], running: Sequence[Running], key_N: Tensor) -> None:
        """Begin new trajectories in these rows: ones that ended, or the next ones behind R."""
        at = torch.tensor(row_N, device=self.device)
        self.key[at] = key_N
        self.length[at] = torch.tensor([one.length for one in running], device=self.device)
        self.count[at], self.reason[at] = 0, GOING
        self.micros[at] = torch.tensor([-one.prompt.waited for one in running], device=self.device)
        for row, one in zip(row_N, running, strict=True):
            self.running[row : row + 1] = [one]

    def advance(self, logits: Tensor, sampler: Sampler, at: Tensor | slice) -> None:
        """Draw the next token of rows ``at``, one row of logits (n, P) each, and see whether it was the last."""
        rules, count, reason = self.rules, self.count[at], self.reason[at]
        token = sampler(logits, self.key[at], count)
        going = reason == GOING
        self.out[self.index[at], count] = token.int()
        count = count + going
        micros = self.micros[at] + torch.where(going, rules.interval_P[token], 0)
        ended = torch.where(count >= rules.budget, SPENT, GOING)
        ended = torch.where(micros > rules.horizon, LATE, ended)
        ended = torch.where(rules.stop_P[token], STOPPED, ended)
        self.token[at], self.count[at], self.micros[at] = token, count, micros
        self.reason[at] = torch.where(going, ended, reason)

    def look(self) -> list[int]:
        """Rows that have ended."""
        return [row for row, reason in enumerate(self.reason[: len(self.running)].tolist()) if reason]

    def tokens_of(self, rows: Sequence[int]) -> list[np.ndarray]:
        """New tokens of rows, int32 each."""
        at = torch.tensor(rows, device=self.device)
        count = self.count[at].tolist()
        out = self.out[at, : max(count)].cpu().numpy()
        return [one[:length].copy() for one, length in zip(out, count, strict=True)]

    def results(self, rows: Sequence[int]) -> list[Trajectory]:
        """Trajectories of rows that have ended."""
        at = torch.tensor(rows, device=self.device)
        facts = zip(rows, self.tokens_of(rows), self.reason[at].tolist(), self.micros[at].tolist(), strict=True)
        found = []
        for row, tokens, reason, micros in facts:
            prompt, draw = self.running[row].prompt, self.running[row].draw
            found.append(Trajectory(prompt.subject_id, prompt.time, draw, tokens, REASONS[reason], micros / SECOND_US))
        return found

    def close(self, holes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Move the last rows into holes, so that rows in use are the first ones; says which went where."""
        left = len(self.running) - len(holes)
        target = [row for row in holes if row < left]
        source = sorted(set(range(left, len(self.running))) - set(holes))
        if target:
            one, other = (torch.tensor(rows, device=self.device) for rows in (source, target))
            for state in (self.token, self.key, self.count, self.micros, self.reason, self.length, self.out):
                state[other] = state[one]
            for row, hole in zip(source, target, strict=True):
                self.running[hole] = self.running[row]
        del self.running[left:]
        return source, target


def check_prompt(prompt: Prompt, vocabulary_size: int, window: int) -> None:
    """Raise DataError for a prompt that the model cannot go on from."""
    tokens = np.asarray(prompt.tokens)
    if tokens.ndim != 1 or not len(tokens) or tokens.dtype.kind not in "iu":
        raise DataError(
            f"a prompt is {tokens.dtype} of shape {tokens.shape}; it must be a row of at least one token id"
        )
    if len(tokens) > window:
        raise DataError(
            f"a prompt has {len(tokens)} tokens, but a context has positions for {window}: keep its static prefix and "
            "the newest tokens that fit"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary_size:
        raise DataError(
            f"a prompt holds token id {low if low < 0 else high}, but the model knows ids 0 to {vocabulary_size - 1}: "
            "tokenize with the vocabulary that the model was trained with"
        )
    if prompt.waited < 0:
        raise DataError("the newest event of a prompt is later than its prediction time; give the events up to then")
    if not 0 <= prompt.prefix <= len(tokens) or window - prompt.prefix < 4:
        raise DataError(
            f"a prompt of {len(tokens)} tokens has a static prefix of {prompt.prefix}; it must be part of the prompt, "
            f"and leave room for 4 tokens in a context of {window}"
        )
