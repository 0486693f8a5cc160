"""Each check of strategies fails on one that breaks what it checks."""

from types import SimpleNamespace

import pytest
import torch
from ehr_core.testing import strategy_checks
from ehr_train.settings import SingleConfig
from ehr_train.strategies.local import Single


class NeverScales(Single):
    """Forgets to divide the sum of gradients by the number of items."""

    def clip(self, parameters, scale, limit):
        return super().clip(parameters, torch.ones_like(scale), limit)


class NeverClips(Single):
    def clip(self, parameters, scale, limit):
        return super().clip(parameters, scale, 0.0)


class LosesTheOptimizer(Single):
    def restore_optimizer(self, learner, optimizer, state):
        pass


class LosesWeights(Single):
    def load_weights(self, learner, weights):
        pass


class RenamesWeights(Single):
    def weights(self, learner):
        return {f"module.{name}": tensor for name, tensor in super().weights(learner).items()}


class CountsTwice(Single):
    def sum(self, values):
        return 2 * super().sum(values)


WRONG = [
    (NeverScales, "the norm before clipping is"),
    (NeverClips, "was trained otherwise"),
    (LosesTheOptimizer, "differs after going on from a checkpoint"),
    (LosesWeights, "differs after going on from a checkpoint"),
    (RenamesWeights, "weights has"),
    (CountsTwice, "the sum over one process is not the value"),
]


def check(strategy, folder):
    part = SimpleNamespace(name="single", load=lambda: strategy, config=SingleConfig)
    for one in strategy_checks.CHECKS["strategy"]:
        one("strategy", part, folder)


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_a_wrong_strategy_is_told_what_is_wrong(wrong, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        check(wrong, tmp_path)


def test_ours_passes(tmp_path):
    check(Single, tmp_path)
