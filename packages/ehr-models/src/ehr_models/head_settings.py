"""Settings of the objectives that learn from labels. Nothing heavy is imported here."""

from dataclasses import dataclass, field

from ehr_models.settings import HeadConfig


@dataclass
class MulticlassConfig(HeadConfig):
    """One of several classes."""

    name: str = "multiclass"
    num_classes: int = 2
    """Labels are whole numbers from 0 to one less than this."""
    positive: int = 1
    """Class whose probability is the prediction."""


@dataclass
class MultilabelConfig(HeadConfig):
    """Several yes-or-no labels of each sample, such as the codes of the next visit."""

    name: str = "multilabel"
    num_labels: int = 1
    """Labels of a sample: (N, K), or (N,) for one; one that is NaN is not known and does not count."""
    positive: int = 0
    """Label whose probability is the prediction."""


@dataclass
class NextVisitConfig(HeadConfig):
    """Which codes occur in the next visit, from the visits before it; BEHRT's task. Needs no labels."""

    name: str = "next_visit"
    column: str = "visit"
    """Column of the store with the number of each token's visit, 0 outside all."""
    kinds: list[str] = field(default_factory=lambda: ["code"])
    """Kinds of tokens that are asked about."""
    prefixes: list[str] = field(default_factory=list)
    """Ask only about tokens whose names begin with one of these, such as diagnoses. Empty: all."""
    max_labels: int = 1000
    """Ask about so many codes at most, the most frequent ones in train."""
    min_count: int = 1
    """Ask about codes with so many occurrences in train."""
    min_visits: int = 1
    """Visits that must come before the one that is asked."""


@dataclass
class RegressionConfig(HeadConfig):
    """A number, with a normal error whose width is learned."""

    name: str = "regression"
    threshold: float = 0.5
    """The prediction is the probability of a value above it."""


@dataclass
class SurvivalConfig(HeadConfig):
    """Time to an event by discrete hazards in bins of equal width."""

    name: str = "survival"
    num_bins: int = 12
    """Bins between the prediction time and the horizon."""
    horizon_days: float = 365.0
    """The prediction is the probability of the event up to here; what is later counts as no event up to here."""


@dataclass
class TimeToEventConfig(HeadConfig):
    """Time to an event by a hazard that is constant within each bin, MOTOR's loss."""

    name: str = "time_to_event"
    edges_days: list[float] = field(default_factory=lambda: [30.0, 90.0, 365.0])
    """Inner borders of the bins, ascending; the first bin begins at 0 and the last one has no end."""
    horizon_days: float = 365.0
    """The prediction is the probability of the event up to here."""
    rate_per_day: float = 1e-3
    """Hazard that training starts from: events a day among those at risk."""
    bin_width: int = 32
    """Width of the representation of each bin."""
