"""Strategies: where a learner and its state live. `Replicated` is the base of simple ones."""

from ehr_train.strategies.base import Replicated

__all__ = ["Replicated"]
