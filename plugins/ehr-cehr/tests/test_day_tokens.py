"""Names of numbers of days, as published."""

import numpy as np
import pytest
from ehr_cehr.day_tokens import DayTokens


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("cehr_bert", {-5: "W-1", -1: "W-1", 0: "W0", 6: "W0", 7: "W1", 27: "W3", 28: "M0", 29: "M0", 30: "M1",
                       359: "M11", 360: "LT", 99999: "LT"}),
        ("day", {0: "D0", 1079: "D1079", 1080: "LT"}),
        ("week", {0: "W0", 6: "W0", 7: "W1", 1079: "W154", 1080: "LT"}),
        ("month", {0: "M0", 29: "M0", 30: "M1", 1079: "M35", 1080: "LT"}),
        ("mix", {0: "D0", 7: "D7", 8: "W2", 14: "W2", 15: "W3", 30: "W5", 31: "M2", 60: "M2", 61: "M3", 360: "M12",
                 361: "LT"}),
    ],
)  # fmt: skip
def test_each_function_names_days_as_published(function, expected):
    tokens = DayTokens(function, "time_tokens")
    days = np.array(list(expected))
    assert [tokens.names[i] for i in tokens.find(days)] == list(expected.values())


def test_the_days_of_a_token_are_those_that_it_names():
    for function in ("cehr_bert", "day", "week", "month", "mix"):
        tokens = DayTokens(function, "time_tokens")
        for name, (low, high) in tokens.days().items():
            if name == "W-1":
                assert (low, high) == (0, 0)
                continue
            last = 5000 if high is None else int(high) - 1
            assert [tokens.names[i] for i in tokens.find(np.array([int(low), last]))] == [name, name]
            assert low == 0 or tokens.names[tokens.find(np.array([int(low) - 1]))[0]] != name
