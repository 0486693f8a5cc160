"""``direct``: the probability of an outcome's codes as the next token, from forward passes alone.

Let p(.) be the model's distribution of the token after the last visible one. A token belongs to an outcome when it
stands for codes and every one of them begins with one of the outcome's prefixes. Without a horizon

    score = p(positive) / (p(positive) + p(negative)).

With a horizon of h days the model may first say that time passes. Interval token i stands for [lower_i, upper_i] days;
its share within the horizon is f_i = clip((h - lower_i) / (upper_i - lower_i), 0, 1), so 1 when upper_i <= h, 0 when
lower_i >= h, and uniform in between. With p(. | i) the distribution after one interval token i,

    positive = p(positive) + sum_i f_i p(i) p(positive | i)
    negative = p(negative) + sum_i f_i p(i) p(negative | i) + sum_i (1 - f_i) p(i)
    score = positive / (positive + negative).

This is one look ahead: what follows a second interval, or an unrelated token, is not counted on either side. Every term
is exact; nothing is sampled. It costs one more forward pass for each interval token with f_i > 0.
"""

from dataclasses import dataclass

import numpy as np
import torch
from ehr_core.batch import Batch
from ehr_core.errors import NotApplicable
from ehr_core.formats.folder import read_json
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TOKENIZER
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.protocols import Outcome, PredictionJob

from ehr_train.data import Samples
from ehr_train.learner import Learner, autocast, load_run
from ehr_train.predictors.samples import open_store, predict_splits, score
from ehr_train.settings import DirectConfig
from ehr_train.strategies import choose_device

NOT_CODES = ("special", "quantile", "interval", "static", "age")


@dataclass(frozen=True)
class Question:
    """An outcome in token ids."""

    positive: list[int]
    negative: list[int]
    within: dict[int, float]
    """Interval tokens to the share of their span that is within the horizon; empty without one."""


class Direct:
    """See the module."""

    needs_run = True

    def __init__(self, settings: DirectConfig):
        self.settings = settings

    def predict(self, job: PredictionJob) -> None:
        """Raises NotApplicable for labels without a known outcome, and for one that the vocabulary cannot say."""
        store = open_store(job)
        device = choose_device(self.settings.device)
        assert job.run is not None
        run, learner = load_run(job.run, device)
        if learner.objective.labelled or not learner.model.causal:
            raise NotApplicable(f"{run.path.name} was not trained to predict the next token, so there is none to read")
        question = ask(job.outcome, run)

        def scorer(samples: Samples) -> np.ndarray:
            return self._score(samples, learner, question, device)

        reserve = 1 if any(question.within.values()) else 0
        predict_splits(job, store, int(run.manifest.content["context_length"]), scorer, reserve)

    def _score(self, samples: Samples, learner: Learner, question: Question, device: torch.device) -> np.ndarray:
        groups = [question.positive, question.negative, *([token] for token in question.within)]

        def masses(tail: int | None, wanted: list[list[int]]) -> np.ndarray:
            rows = samples.rows(tail=tail)
            return score(rows, self.settings.batch_size, device, lambda batch: group_masses(learner, batch, wanted))

        first = masses(None, groups)
        positive, negative = first[:, 0], first[:, 1]
        for number, (token, share) in enumerate(question.within.items()):
            mass = first[:, 2 + number]
            negative = negative + (1.0 - share) * mass
            if share:
                then = masses(token, groups[:2])
                positive = positive + share * mass * then[:, 0]
                negative = negative + share * mass * then[:, 1]
        both = positive + negative
        # The model may rule out both; nothing is known then.
        answer: np.ndarray = np.divide(positive, both, out=np.full_like(both, 0.5), where=both > 0)
        return answer


def group_masses(learner: Learner, batch: Batch, groups: list[list[int]]) -> torch.Tensor:
    """Probability (N, number of groups) that the next token is in each group of ids."""
    with autocast("auto", batch.token_BT.device):
        hidden = learner.model(**batch.inputs()).last_hidden_state.flatten(0, 1)[batch.last_N]
        logits = learner.model.lm_logits(hidden)
    probability = logits.double().softmax(-1)
    return torch.stack([probability[:, group].sum(-1) for group in groups], dim=-1)


def ask(outcome: Outcome | None, run: Run) -> Question:
    """The outcome in the run's tokens. Raises NotApplicable with what was looked for and is not there."""
    if outcome is None:
        raise NotApplicable("these labels name no task whose codes could be read off; use finetuned")
    positive, negative = (tokens_of(run.vocabulary, codes) for codes in (outcome.positive, outcome.negative))
    within: dict[int, float] = {}
    if outcome.horizon_days is not None:
        within = shares_within(run, outcome.horizon_days)
        if not within:
            raise NotApplicable(
                f"a horizon of {outcome.horizon_days:g} days needs interval tokens, and the tokenizer of "
                f"{run.path.name} names none (interval_days in {TOKENIZER})"
            )
    for ids, codes, side in ((positive, outcome.positive, "positive"), (negative, outcome.negative, "negative")):
        if not ids and not (side == "negative" and within):
            raise NotApplicable(f"no token stands for a {side} code ({', '.join(codes) or 'none given'})")
    return Question(positive, [token for token in negative if token not in positive], within)


def tokens_of(vocabulary: Vocabulary, prefixes: tuple[str, ...]) -> list[int]:
    """Ids of the tokens all of whose codes begin with one of the prefixes."""
    if not prefixes:
        return []
    return [
        index
        for index, token in enumerate(vocabulary.tokens)
        if token.kind not in NOT_CODES and token.codes and all(code.startswith(prefixes) for code in token.codes)
    ]


def shares_within(run: Run, horizon: float) -> dict[int, float]:
    """Interval token to the share of its span within the horizon; an open end (null) lies beyond it."""
    found = read_json(run.tokenizer / TOKENIZER).get("state", {}).get("interval_days", {})
    shares = {}
    for token, (lower, upper) in found.items():
        if token in run.vocabulary.ids:
            span = np.inf if upper is None else upper - lower
            part = (horizon - lower) / span if span > 0 else float(lower <= horizon)
            shares[run.vocabulary[token]] = float(np.clip(part, 0.0, 1.0))
    return shares
