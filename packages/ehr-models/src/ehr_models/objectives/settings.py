"""Settings of the objectives. Nothing heavy is imported here."""

from dataclasses import dataclass, field


@dataclass
class NextTokenConfig:
    """Predict each next token of a window."""

    name: str = "next_token"


@dataclass
class MaskedConfig:
    """Predict tokens that are hidden, from all others of the window (masked language modelling).

    On a causal model a hidden token is predicted from what comes before it alone.
    """

    name: str = "masked"
    rate: float = 0.15
    """Share of the tokens of a window that are predicted. The static prefix and specials never are."""
    mask_share: float = 0.8
    """Share of the predicted ones that become [MASK]."""
    random_share: float = 0.1
    """Share that becomes a random token; the rest stays as it is."""
    exact: bool = False
    """Choose ``round(rate * n)`` of a window's n tokens, at least one, and leave one to read; else each by chance."""
    most: int = 0
    """Predict no more of a window than this, with ``exact``; 0: no limit."""


@dataclass
class HeadConfig:
    """What all heads have that read a sample: how its states become one, and dropout."""

    name: str = "head"
    dropout: float = 0.1
    """Dropout before the head, in training only."""
    pooling: str = "last"
    """``last``: the state of a sample's last visible token; ``cls``: of its first; ``mean``: the mean over all of its
    visible tokens; ``attention``: a mean with learned weights."""


@dataclass
class ClassificationConfig(HeadConfig):
    """A binary head, trained together with the model."""

    name: str = "classification"


@dataclass
class MulticlassConfig(HeadConfig):
    """One of several classes, as many as the labels name."""

    name: str = "multiclass"


@dataclass
class MultilabelConfig(HeadConfig):
    """Several yes-or-no labels of each sample, such as the codes of the next visit; one that is NaN does not count."""

    name: str = "multilabel"


@dataclass
class RegressionConfig(HeadConfig):
    """A number, with a normal error whose width is learned."""

    name: str = "regression"
    center: float | None = None
    """Where predictions start, in the unit of the labels; null: the mean of the train labels, filled in for the run."""
    scale: float | None = None
    """How wide errors are at the start, above 0; null: the standard deviation of the train labels, filled in."""


@dataclass
class NextVisitConfig(HeadConfig):
    """Which codes occur in the next visit, from the visits before it; BEHRT's task. Needs no labels."""

    name: str = "next_visit"
    column: str = "visit"
    """Column of the store with the number of each token's visit, 0 outside all."""
    kinds: list[str] = field(default_factory=lambda: ["code"])
    """Kinds of tokens that may be labels."""
    prefixes: list[str] = field(default_factory=list)
    """Only tokens whose names begin with one of these are labels, such as diagnoses. Empty: all."""
    max_labels: int = 1000
    """So many labels at most, the most frequent codes of train."""
    min_count: int = 1
    """A label has so many occurrences in train."""
    min_visits: int = 1
    """Visits that must come before the one that is predicted."""


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
