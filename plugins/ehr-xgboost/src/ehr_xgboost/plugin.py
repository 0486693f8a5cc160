"""The baseline and its settings. xgboost itself is imported when a model is fitted."""

from collections.abc import Iterator
from dataclasses import dataclass

from ehr_core import Component, hookimpl
from ehr_core.outcomes import KINDS


@dataclass
class XGBoostConfig:
    """Gradient-boosted trees with early stopping on the tuning split."""

    name: str = "xgboost"
    max_depth: int = 6
    """Depth of a tree."""
    learning_rate: float = 0.03
    """How much of each tree is added."""
    num_rounds: int = 2000
    """Trees, at most."""
    early_stopping_rounds: int = 50
    """Stop when the loss on tuning has not improved for so many trees."""
    subsample: float = 1.0
    """Share of rows that a tree sees."""
    colsample: float = 0.3
    """Share of features that a tree sees."""
    min_child_weight: float = 1.0
    """Smallest sum of second derivatives in a leaf."""
    reg_lambda: float = 1.0
    """L2 penalty on the values of leaves."""
    num_threads: int = 0
    """Threads; 0: all there are. The trees do not depend on it."""
    seed: int | None = None
    """Draws rows and features. None: the command's seed."""


@hookimpl
def ehr_baselines() -> Iterator[Component]:
    yield Component(
        name="xgboost",
        target="ehr_xgboost.baseline:XGBoost",
        config=XGBoostConfig,
        summary="Gradient-boosted trees on counts and values",
        outcomes=KINDS,
    )
