"""``survival`` and ``time_to_event``: when an event comes, from samples that are partly censored.

Labels of the kind ``survival`` are (N, 2): days from the prediction time to the event or to the last time that the
subject was known without it, and 1 or 0 for event or not. Those of the kind ``binary`` (N,) say only whether the event
came by the horizon, and count by the probability of that. The prediction is the same for both: the probability of the
event by the horizon, which is a risk, too: the higher, the sooner.

Bins are closed on the right: an event at a border belongs to the bin that ends there.

Shapes: N samples, K bins, E width of a bin's representation.
"""

import itertools
import math

import torch
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.outcomes import BINARY, SURVIVAL, Question
from torch import Tensor, nn
from torch.nn import functional

from ehr_models.objectives.heads import LabelObjective, check_binary, linear, number_of, question_of
from ehr_models.objectives.settings import SurvivalConfig, TimeToEventConfig


def times(label_N2: Tensor) -> tuple[Tensor, Tensor]:
    """Days and whether the event came, (N,) each. Raises DataError, on CPU, for what cannot be."""
    day_N, event_N = label_N2.unbind(1)
    good_N = (day_N >= 0) & day_N.isfinite() & ((event_N == 0) | (event_N == 1))
    if label_N2.device.type == "cpu" and not good_N.all():
        raise DataError("labels of survival must be pairs of days, at least 0, and 1 (event) or 0 (no event so far)")
    return day_N, event_N > 0


def by_horizon(hazard_N: Tensor, label_N: Tensor) -> Tensor:
    """Negative log-likelihood of whether the event came, from the hazard that has added up by the horizon."""
    check_binary("survival", label_N)
    came_N = -torch.log(-torch.expm1(-hazard_N.clamp_min(1e-12)))
    return (label_N * came_N + (1 - label_N) * hazard_N).sum()


class Survival(LabelObjective):
    """Discrete time: the hazard of each bin is a sigmoid.

    A sample counts as one binary question for each bin that it has lived through, and one for the bin of its event: the
    likelihood of Brown 1975 ("On the use of indicator variables for studying the time-dependence of parameters in a
    response-time model"). Censoring within a bin says nothing about that bin.
    """

    end_K: Tensor
    """float64 days at which the bins end."""

    def __init__(self, settings: SurvivalConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        kind = question_of(settings, question, SURVIVAL, BINARY).kind
        if settings.num_bins < 1 or not settings.horizon_days > 0:
            raise ConfigError(
                f"objective: num_bins is {settings.num_bins} and horizon_days is {settings.horizon_days}; "
                "there must be at least 1 bin, and a horizon above 0"
            )
        super().__init__(settings, width, settings.num_bins)
        self.kind = kind
        index_K = torch.arange(1, settings.num_bins + 1, dtype=torch.float64)
        # Multiplied first and in float64: whole days that are a border must be that very number.
        self.register_buffer("end_K", index_K * settings.horizon_days / settings.num_bins, persistent=False)

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Over samples."""
        N = len(output_NO)
        self.check_labels(label_N, (N,) if self.kind == BINARY else (N, 2))
        if self.kind == BINARY:
            return by_horizon(functional.softplus(output_NO).sum(1), label_N), number_of(label_N)
        day_N, event_N = times(label_N)
        day_N = day_N.double()
        ended_N, before_N = (torch.searchsorted(self.end_K, day_N, right=right) for right in (True, False))
        survived_N = torch.where(event_N, before_N, ended_N)
        index_K = torch.arange(output_NO.shape[1], device=output_NO.device)
        counts_NK = (index_K < survived_N[:, None]) | (event_N[:, None] & (index_K == survived_N[:, None]))
        target_NK = (index_K == survived_N[:, None]).float()
        each_NK = functional.binary_cross_entropy_with_logits(output_NO, target_NK, reduction="none")
        return torch.where(counts_NK, each_NK, 0.0).sum(), number_of(label_N)

    def survival(self, output_NO: Tensor) -> Tensor:
        """(N, K): probability of no event by the end of each bin."""
        return torch.exp(-functional.softplus(output_NO).cumsum(1))

    def prediction(self, output_NO: Tensor) -> Tensor:
        """(N,): probability of the event by the horizon."""
        return -torch.expm1(-functional.softplus(output_NO).sum(1))


class TimeToEvent(LabelObjective):
    """Continuous time: the hazard is constant within each bin.

    The loss of MOTOR (Steinberg et al. 2023, "MOTOR: A time-to-event foundation model for structured medical records"):
    with s the binary logarithm of the hazard a day, 2**s times the days at risk, less ln 2 times s where the event is;
    the mean over samples and bins. That is the likelihood of a piecewise exponential model.
    """

    start_K: Tensor
    end_K: Tensor

    def __init__(self, settings: TimeToEventConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        kind = question_of(settings, question, SURVIVAL, BINARY).kind
        edges = [0.0, *settings.edges_days]
        if any(not one < other for one, other in itertools.pairwise(edges)):
            raise ConfigError(f"objective.edges_days is {list(settings.edges_days)}; it must ascend from above 0")
        if not (settings.horizon_days > 0 and settings.rate_per_day > 0 and settings.bin_width > 0):
            raise ConfigError("objective: horizon_days, rate_per_day and bin_width must be above 0")
        super().__init__(settings, width, len(edges) * settings.bin_width)
        self.kind = kind
        E = settings.bin_width
        self.norm = nn.RMSNorm(E, eps=1e-6)
        self.task = linear(E, 1)
        nn.init.constant_(self.task.bias, math.log2(settings.rate_per_day))
        self.offset = nn.Parameter(torch.zeros(len(edges)))
        self.register_buffer("start_K", torch.tensor(edges), persistent=False)
        self.register_buffer("end_K", torch.tensor([*edges[1:], torch.inf]), persistent=False)

    def transform(self, head_NO: Tensor) -> Tensor:
        """(N, K): binary logarithms of the hazards a day."""
        z_NKE = self.norm(head_NO.unflatten(1, (-1, self.settings.bin_width)))
        return self.task(z_NKE).squeeze(-1).float() + self.offset.float()

    def at_risk(self, day_N: Tensor) -> Tensor:
        """(N, K): days before ``day_N`` that are within each bin."""
        return (torch.minimum(day_N[:, None], self.end_K) - self.start_K).clamp_min(0)

    def hazard(self, output_NO: Tensor, days: float) -> Tensor:
        """(N,): the hazard that has added up after so many days."""
        return (output_NO.exp2() * self.at_risk(output_NO.new_full((len(output_NO),), days))).sum(1)

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Over samples and bins, or over samples where only the horizon is known."""
        N = len(output_NO)
        self.check_labels(label_N, (N,) if self.kind == BINARY else (N, 2))
        if self.kind == BINARY:
            return by_horizon(self.hazard(output_NO, self.settings.horizon_days), label_N), number_of(label_N)
        day_N, event_N = times(label_N)
        first_K = torch.arange(output_NO.shape[1], device=output_NO.device) == 0
        day_N1 = day_N[:, None]
        in_bin_NK = ((day_N1 > self.start_K) | first_K) & (day_N1 <= self.end_K) & event_N[:, None]
        exposed_NK = output_NO.exp2() * self.at_risk(day_N)
        total = exposed_NK.sum() - math.log(2) * (output_NO * in_bin_NK).sum()
        return total, output_NO.new_tensor(float(output_NO.numel()))

    def prediction(self, output_NO: Tensor) -> Tensor:
        """(N,): probability of the event by the horizon."""
        return -torch.expm1(-self.hazard(output_NO, self.settings.horizon_days))
