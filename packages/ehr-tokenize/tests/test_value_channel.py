"""The continuous channel, for models that want numbers: by hand, each token with the number beside it."""

import pytest
from ehr_tokenize import plugin
from ehr_tokenize.grammars.ethos import Ethos
from ehr_tokenize.grammars.fused import Fused
from ehr_tokenize.grammars.visits import Visits
from ehr_tokenize.grammars.visits_settings import VisitsConfig

TRAIN = [
    (1, None, "HEIGHT", 170.0),
    *[(1, "2020-01-01 00:00", "LAB//K", value) for value in (0.0, 2.0, 3.0, 4.0)],
    (1, "2020-01-01 00:00", "NOTE"),
]
HELD_OUT = [
    (7, None, "HEIGHT", 180.0),  # static: a quantile in the prefix, no number in the channel
    (7, "2020-01-01 00:00", "LAB//K", 0.0),  # zero is a number
    (7, "2020-01-01 01:00", "LAB//K", None),
    (7, "2020-01-01 01:00", "LAB//K", float("inf")),  # no number either
    (7, "2020-01-01 01:00", "LAB//K", -1e30),  # as it is, however far out
    (7, "2020-01-03 01:00", "NOTE", 5.5),  # a code that had none in train: no bin, but the number is there
    (7, "2020-01-03 01:00", "NEW", 9.0),  # an unseen code: nobody knows what it measures, its number stays with [UNK]
]
HUGE = pytest.approx(-1e30)
EXPECTED = {
    Ethos: [
        *[("LAB//K", 0.0), ("Q1", None)],
        *[("45m-1h15m", None), ("LAB//K", None), ("LAB//K", None), ("LAB//K", HUGE), ("Q1", None)],
        *[("2d-4d", None), ("NOTE", 5.5), ("[UNK]", 9.0), ("TIMELINE_END", None)],
    ],
    Fused: [
        *[("TIMELINE//START", None), ("LAB//K//value_[-inf,1.5)", 0.0)],
        ("TIMELINE//DELTA//years//value_[0.000114077,0.000342231)", None),
        *[("LAB//K", None), ("LAB//K", None), ("LAB//K//value_[-inf,1.5)", HUGE)],
        ("TIMELINE//DELTA//years//value_[0.0054757,0.0109514)", None),
        *[("NOTE", 5.5), ("[UNK]", 9.0), ("TIMELINE//END", None)],
    ],
    Visits: [
        *[("[CLS]", None), ("LAB//K", 0.0), ("LAB//K", None), ("LAB//K", None), ("LAB//K", HUGE)],
        *[("[SEP]", None), ("NOTE", 5.5), ("[UNK]", 9.0)],
    ],
}
SETTINGS = {
    Ethos: plugin.EthosConfig(num_quantiles=4),
    Fused: plugin.FusedConfig(num_quantiles=4),
    Visits: VisitsConfig(),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_number_stands_at_its_code(world, kind):
    settings = SETTINGS[kind]
    settings.value, settings.min_count = True, 1
    tokenizer = kind(settings)
    tokenizer.fit([tokenizer.summarize(world.frame(TRAIN))])
    found = world.Decoded(tokenizer.vocabulary, tokenizer.prefix, [tokenizer.encode(world.frame(HELD_OUT))])
    numbers = [None if number != number else number for number in found.slice(7, "value").tolist()]
    assert list(zip(found.tokens(7), numbers, strict=True)) == EXPECTED[kind]
