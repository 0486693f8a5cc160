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

Fitting is no training: the question is put into the run's token ids (``question.json``), and what predicting needs of
the run is kept beside it (``run/``).
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from ehr_core.batch import Batch
from ehr_core.errors import ConfigError, NotApplicable
from ehr_core.formats.folder import read_json, verify_below, write_json
from ehr_core.formats.intervals import Intervals
from ehr_core.formats.labels import read_labels
from ehr_core.formats.run import Run
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.outcomes import BINARY
from ehr_core.protocols import FitJob, OutcomeCodes, PredictJob

from ehr_train.devices import autocast, choose_device
from ehr_train.learner import Learner, is_causal, load_run
from ehr_train.loader.samples import Samples
from ehr_train.predictors.applying import RUN, fitted_run, predict_splits, score
from ehr_train.settings import DirectConfig

NOT_CODES = ("special", "quantile", "interval", "static", "age")
FILE = "question.json"


@dataclass(frozen=True)
class TokenQuestion:
    """An outcome in token ids."""

    positive: list[int]
    negative: list[int]
    within: dict[int, float]
    """Interval tokens to the share of their span that is within the horizon; empty without one."""

    def save(self, folder: Path) -> None:
        """Write ``question.json``."""
        write_json(folder / FILE, asdict(self) | {"within": {str(k): share for k, share in self.within.items()}})

    @classmethod
    def load(cls, folder: Path) -> "TokenQuestion":
        """Read what `save` wrote. Raises FormatError."""
        verify_below(folder)
        return read_json(folder / FILE, cls)


class Direct:
    """See the module."""

    needs_run = True

    def __init__(self, settings: DirectConfig):
        self.settings = settings
        choose_device(settings.device)
        if settings.batch_size < 1:
            raise ConfigError(f"predictors.direct.batch_size is {settings.batch_size}; it must be at least 1")

    def fit(self, job: FitJob) -> None:
        """Raises NotApplicable for labels without a known outcome, and for one that the vocabulary cannot say."""
        if job.run is None:
            raise ConfigError("direct predicts with a trained run; give run=RUN")
        question = read_labels(job.labels).question if job.labels.is_dir() else None
        if question is not None and question.kind != BINARY:
            raise NotApplicable(f"direct answers binary questions, and these labels are of kind {question.kind}")
        run, learner = load_run(job.run, torch.device("cpu"))
        if run.question is not None or not is_causal(learner.model):
            raise NotApplicable(f"{run.path.name} was not trained to predict the next token, so there is none to read")
        resolve(job.codes, run).save(job.output)
        run.copy_needed(job.output / RUN)

    def predict(self, job: PredictJob) -> dict[str, np.ndarray]:
        """Probabilities of each split."""
        question, device = TokenQuestion.load(job.fitted), choose_device(self.settings.device)
        run, learner = load_run(fitted_run(job.fitted).path, device)

        def scorer(samples: Samples) -> np.ndarray:
            return self._score(samples, learner, question, device)

        return dict(predict_splits(job, run, scorer, 0, reserve=1 if any(question.within.values()) else 0))

    def tokenizer(self, fitted: Path) -> Path | None:
        """The run's."""
        return fitted_run(fitted).tokenizer

    def _score(self, samples: Samples, learner: Learner, question: TokenQuestion, device: torch.device) -> np.ndarray:
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
        return np.clip(answer, 0.0, 1.0)


def group_masses(learner: Learner, batch: Batch, groups: list[list[int]]) -> torch.Tensor:
    """Probability (N, number of groups) that the next token is in each group of ids."""
    with autocast("auto", batch.token_BT.device):
        hidden = learner.model(**batch.inputs()).last_hidden_state.flatten(0, 1)[batch.last_N]
        logits = learner.model.lm_logits(hidden)
    probability = logits.double().softmax(-1)
    return torch.stack([probability[:, group].sum(-1) for group in groups], dim=-1)


def resolve(outcome: OutcomeCodes | None, run: Run) -> TokenQuestion:
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
                f"{run.path.name} names none (intervals.json)"
            )
    for ids, codes, side in ((positive, outcome.positive, "positive"), (negative, outcome.negative, "negative")):
        if not ids and not (side == "negative" and within):
            raise NotApplicable(f"no token stands for a {side} code ({', '.join(codes) or 'none given'})")
    return TokenQuestion(positive, [token for token in negative if token not in positive], within)


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
    shares = {}
    for token, (lower, upper) in Intervals.load(run.tokenizer).days.items():
        if token in run.vocabulary.ids:
            span = np.inf if upper is None else upper - lower
            part = (horizon - lower) / span if span > 0 else float(lower <= horizon)
            shares[run.vocabulary[token]] = float(np.clip(part, 0.0, 1.0))
    return shares
