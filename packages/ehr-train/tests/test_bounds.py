"""Numbers of the trainer that cannot be are refused before any work."""

import pytest
from ehr_core.errors import ConfigError
from ehr_train.check import check_train
from ehr_train.settings import TrainConfig


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"beta1": 1.0}, r"train.beta1 is 1.0; it must be below 1"),
        ({"beta2": 2.0}, r"train.beta2 is 2.0; it must be below 1"),
        ({"warmup_share": 2.0}, r"train.warmup_share is 2.0; it must be at most 1"),
        ({"batch_size": 0}, r"train.batch_size is 0; it must be at least 1"),
    ],
)
def test_a_number_that_cannot_be_is_named_with_what_it_may_be(wrong, words):
    check_train(TrainConfig())
    with pytest.raises(ConfigError, match=words):
        check_train(TrainConfig(**wrong))
