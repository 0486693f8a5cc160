"""Draw trajectories from a causal model, many at a time, computing each token of each context once.

- A prompt is computed once, and its keys and values are kept once and read once a step for all of its draws.
- Rows that end make room at once for the next draws, and the others close up when there are none.
- What is drawn depends on seed, subject, time, draw and step alone, not on the batch: up to what another order of
  adding floating-point numbers makes of two tokens that are all but equally likely.
- Positions are absolute, so a context that is full cannot be shifted. It goes on from its static prefix and the newer
  half of its timeline, computed afresh from position 0: one more pass over half a window for each half window drawn.

Shapes: G prompts, S rows, R of them in use, T tokens, P logits a row.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ehr_core.constants import DAY_US, SECOND_US
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.intervals import Intervals
from ehr_core.formats.vocabulary import Vocabulary
from torch import Tensor

from ehr_models.generation.noise import draw_keys
from ehr_models.generation.rows import Prompt, Rows, Rules, Running, Trajectory, check_prompt
from ehr_models.generation.sampling import Sampler, check, never_drawn, stop_ids
from ehr_models.generation.settings import LONGEST_DAYS, GenerationConfig

FOREVER = 1 << 62
PREFILL = 16_384
"""Tokens of one pass over several contexts, at most."""


@dataclass
class Waiting:
    """A prompt whose keys and values are computed, with draws still to start."""

    prompt: Prompt
    row: int
    """Where in the cache it is, behind the rows of trajectories."""
    logits_1P: Tensor
    started: int = 0


class Engine:
    """Draws from one model. ``intervals`` says how long interval tokens are (`Intervals.load` of a run's tokenizer)."""

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        settings: GenerationConfig | None = None,
        intervals: Intervals | None = None,
    ):
        """Raises ConfigError for settings or a model that cannot serve, FormatError for another vocabulary."""
        self.settings = settings or GenerationConfig()
        check(self.settings)
        self.model, self.vocabulary = model.eval(), vocabulary  # dropout would draw from another model
        check_model(model, vocabulary)
        self.window = window_of(model, self.settings)
        self.device = next(model.parameters()).device
        self.logit_width = width_of_logits(model)
        self.steps = 1 if self.device.type == "cpu" else 16
        self.waiting_rows = 1 if self.device.type == "cpu" else max(1, min(8, PREFILL // self.window))
        self.intervals = (intervals or Intervals()).mean_seconds
        self.stops = stop_ids(self.settings, vocabulary)
        self.rules = self._rules()

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[Trajectory]:
        """All draws of all prompts, each as soon as it has ended. Raises DataError for a prompt that does not fit."""
        work = _Work(self, iter(prompts))
        while work.fill():
            work.run()
            yield from work.collect()

    def _rules(self) -> Rules:
        size, settings = self.logit_width, self.settings
        stop_P = torch.zeros(size, dtype=torch.bool)
        stop_P[self.stops] = True
        interval_P = torch.zeros(size, dtype=torch.int64)
        for name, seconds in self.intervals.items():
            if name not in self.vocabulary.ids:
                raise FormatError(f"intervals.json names {name!r}, which the vocabulary does not have")
            if not 0 <= seconds * SECOND_US <= LONGEST_DAYS * DAY_US:
                raise ConfigError(
                    f"the interval token {name!r} stands for {seconds} seconds; give a number from 0 to "
                    f"{LONGEST_DAYS:,} days"
                )
            interval_P[self.vocabulary[name]] = round(seconds * SECOND_US)
        horizon = FOREVER
        if settings.horizon_days is not None:
            if not self.intervals:
                raise ConfigError(
                    "generation.horizon_days needs interval tokens with estimates of their length, and the tokenizer "
                    "has none; set it to null, and stop by tokens or max_new_tokens"
                )
            horizon = round(settings.horizon_days * DAY_US)
        device = self.device
        return Rules(stop_P.to(device), interval_P.to(device), horizon, settings.max_new_tokens)


def check_model(model: Any, vocabulary: Vocabulary) -> None:
    """Raise ConfigError for a model that cannot generate, FormatError for one of another vocabulary."""
    if not {"causal", "cache"} <= set(model.provides):
        raise ConfigError(
            f"{type(model).__name__} cannot generate: it takes a model that provides causal and cache, such as gpt; "
            f"this one provides {' and '.join(model.provides) or 'neither'}"
        )
    if model.config.vocab_size != len(vocabulary):
        raise FormatError(
            f"the model knows {model.config.vocab_size} tokens and the vocabulary has {len(vocabulary)}: "
            "use the vocabulary that the model was trained with"
        )


@torch.no_grad()
def width_of_logits(model: Any) -> int:
    """P: the vocabulary, and what a model may have beyond it."""
    weight = next(model.parameters())
    return int(model.lm_logits(weight.new_zeros(1, model.width)).shape[-1])


def window_of(model: Any, settings: GenerationConfig) -> int:
    """Longest context in positions. Raises ConfigError where the model has fewer, or neither side says how many."""
    limit = model.max_positions
    if limit is None and settings.window < 1:
        raise ConfigError("the model has no limit of positions; give generation.window, the longest context")
    if limit is not None and not 0 <= settings.window <= limit:
        raise ConfigError(f"generation.window is {settings.window}; the model has positions 0 to {limit - 1}")
    return settings.window or int(limit)


class _Work:
    """One call of `Engine.generate`."""

    def __init__(self, engine: Engine, prompts: Iterator[Prompt]):
        self.engine, self.prompts, self.model = engine, prompts, engine.model
        S, self.device, settings = engine.settings.rows, engine.device, engine.settings
        with torch.inference_mode():
            self.rows = Rows(S, engine.rules, self.device)
            never = never_drawn(settings, engine.vocabulary, engine.stops)
            self.sampler = Sampler(settings, never, engine.logit_width, S, self.device)
        prompts_at_once = engine.waiting_rows + max(1, S // settings.draws)
        self.prompt_rows = range(S, S + prompts_at_once)
        self.cache = self.model.make_cache(S + prompts_at_once, engine.window)
        self.waiting: list[Waiting] = []
        self.holes: list[int] = []
        self.more = True

    # -- what is computed next

    @torch.inference_mode()
    def fill(self) -> bool:
        """Start draws wherever there is room; then close up. False when nothing is left to do."""
        S = self.engine.settings.rows
        while len(self.rows.running) - len(self.holes) < S:
            if not self.waiting and not self._read():
                break
            one = self.waiting[0]
            number = min(S - len(self.rows.running) + len(self.holes), self.engine.settings.draws - one.started)
            self._start(one, number)
            if one.started == self.engine.settings.draws:
                self.waiting.pop(0)
        source, target = self.rows.close(self.holes)
        self.cache.move(source, target, [self.rows.running[row].length for row in target])
        self.holes = []
        return bool(self.rows.running)

    def _read(self) -> bool:
        """Compute the next prompts."""
        prompts: list[Prompt] = []
        while self.more and len(prompts) < self.engine.waiting_rows:
            prompt = next(self.prompts, None)
            self.more = prompt is not None
            if prompt is not None:
                check_prompt(prompt, self.model.config.vocab_size, self.engine.window)
                prompts.append(prompt)
        if not prompts:
            return False
        row_G = self._free_rows(len(prompts))
        hidden_GTD = self._prefill(row_G, [np.asarray(prompt.tokens, np.int64) for prompt in prompts])
        last_G = torch.tensor([len(prompt.tokens) - 1 for prompt in prompts], device=self.device)
        logits_GP = self.model.lm_logits(hidden_GTD[torch.arange(len(prompts), device=self.device), last_G])
        self.waiting = [Waiting(*facts) for facts in zip(prompts, row_G, logits_GP.split(1), strict=True)]
        return True

    def _free_rows(self, number: int) -> list[int]:
        """Rows for prompts. Where too many are in use, the draws of those with the fewest left settle on their own."""
        users = {row: len(self.cache.sharing(row)) for row in self.prompt_rows}
        chosen = sorted(users, key=lambda row: (users[row], row))[:number]
        for row in chosen:
            if users[row]:
                self.cache.settle(row)
        return chosen

    def _prefill(self, rows: list[int], contexts: list[np.ndarray]) -> Tensor:
        """Fill rows of the cache; hidden states (G, T, D), of which each row's own are its first ones."""
        token_GT = np.zeros((len(rows), max(map(len, contexts))), np.int64)
        for g, context in enumerate(contexts):
            token_GT[g, : len(context)] = context
        self.cache.prefill(rows, self.device)
        hidden: Tensor = self.model(torch.from_numpy(token_GT).to(self.device), cache=self.cache).last_hidden_state
        return hidden

    def _start(self, one: Waiting, number: int) -> None:
        """Begin the next ``number`` draws of a prompt, each with its first token."""
        taken, self.holes = self.holes[:number], self.holes[number:]
        row_N = taken + list(range(len(self.rows.running), len(self.rows.running) + number - len(taken)))
        prompt, length = one.prompt, len(one.prompt.tokens)
        draw_N = range(one.started, one.started + number)
        one.started += number
        keys = draw_keys(self.engine.settings.seed, prompt.subject_id, prompt.time, torch.tensor(draw_N))
        self.cache.share(one.row, row_N, length)
        self.rows.start(row_N, [Running(prompt, draw, length) for draw in draw_N], keys.to(self.device))
        at = torch.tensor(row_N, device=self.device)
        self.rows.advance(one.logits_1P.repeat(number, 1), self.sampler, at)

    @torch.inference_mode()
    def run(self) -> None:
        """Some steps of all rows: as many as need no look at the results."""
        rows, window = self.rows, self.engine.window
        full = [row for row, one in enumerate(rows.running) if one.length == window]
        if full:
            self._cut(full)
        room = window - max(one.length for one in rows.running)
        left = max(self.engine.rules.budget - one.drawn for one in rows.running)
        for _ in range(min(self.engine.steps, room, max(left, 1))):
            self._step()

    def _step(self) -> None:
        rows, R = self.rows, len(self.rows.running)
        self.cache.step([one.length for one in rows.running], rows.length[:R])
        output = self.model(rows.token[:R, None], rows.length[:R, None], cache=self.cache)
        rows.length[:R] += 1
        for one in rows.running:
            one.length += 1
            one.drawn += 1
        rows.advance(self.model.lm_logits(output.last_hidden_state[:, 0]), self.sampler, slice(0, R))

    def _cut(self, full: list[int]) -> None:
        """Make room in full contexts: the static prefix and the newer half of the rest, computed from position 0.

        The newest token is not part of it yet, but counts: it is read in the step that follows.
        """
        window = self.engine.window
        by_prefix: dict[int, list[int]] = {}
        for row in full:
            by_prefix.setdefault(self.rows.running[row].prompt.prefix, []).append(row)
        for prefix, rows in by_prefix.items():
            length = prefix + (window - prefix) // 2 - 1
            at_once = max(1, PREFILL // length)
            for first in range(0, len(rows), at_once):
                part = rows[first : first + at_once]
                contexts = []
                for row, new in zip(part, self.rows.tokens_of(part), strict=True):
                    past = np.concatenate([np.asarray(self.rows.running[row].prompt.tokens, np.int64), new])[:-1]
                    contexts.append(np.concatenate([past[:prefix], past[len(past) - (length - prefix) :]]))
                    self.rows.running[row].length = length
                self._prefill(part, contexts)
                self.rows.length[torch.tensor(part, device=self.device)] = length

    @torch.inference_mode()
    def collect(self) -> list[Trajectory]:
        """Trajectories that have ended since the last look; their rows are free."""
        self.holes = self.rows.look()
        self.cache.drop(self.holes)
        return self.rows.results(self.holes) if self.holes else []
