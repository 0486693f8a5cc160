"""Records with troubles of all kinds at once: whatever one subject has, the tokens of another stay as they are."""

from datetime import datetime

import polars as pl
import pytest
from ehr_core.formats.meds import read_events
from ehr_core.testing.tiny import subject_rows, write_events
from ehr_tokenize.grammars.ethos import Ethos
from ehr_tokenize.plugin import EthosConfig
from hypothesis import given, settings
from hypothesis import strategies as st

HEALTHY = 202
TIMES = st.one_of(
    st.datetimes(datetime(1930, 1, 1), datetime(2020, 1, 1)),
    st.sampled_from([datetime(1, 1, 1), datetime(1900, 1, 1), datetime(2999, 12, 31), datetime(9999, 12, 31)]),
    st.datetimes(datetime(2000, 1, 1), datetime(2020, 1, 1)).map(lambda t: t.replace(hour=0, minute=0, second=0)),
    st.none(),
)
CODES = st.sampled_from(
    [
        "MEDS_BIRTH",
        "MEDS_BIRTH//EST",
        "MEDS_DEATH",
        "HOSPITAL_ADMISSION//X",
        "HOSPITAL_DISCHARGE//Y",
        "LAB//A",
        " ",
        "//",
    ]
)
VALUES = st.sampled_from([None, float("nan"), float("inf"), -1e38, 0.0, 5.0])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Fitted on healthy subjects."""
    path = tmp_path_factory.mktemp("train") / "0.parquet"
    write_events(path, [row for subject in range(1, 9) for row in subject_rows(subject)])
    fitted = Ethos(EthosConfig(min_count=1))
    fitted.fit([fitted.summarize(read_events(path))])
    return fitted


def tokens_of(tokenizer, path, rows):
    """Tokens and times of the healthy subject, from a shard of these rows."""
    write_events(path, rows)
    table = tokenizer.encode(read_events(path))
    row = table.subject_id.tolist().index(HEALTHY)
    part = slice(table.offset[row], table.offset[row + 1])
    return table.token[part].tolist(), table.time[part].tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([7, 900]), TIMES, CODES, VALUES), max_size=12), st.randoms())
def test_troubles_of_one_subject_reach_no_token_of_another(tokenizer, tmp_path_factory, troubled, random):
    folder = tmp_path_factory.mktemp("held_out")
    healthy = subject_rows(HEALTHY)
    alone = tokens_of(tokenizer, folder / "alone.parquet", healthy)
    places = sorted(random.sample(range(len(healthy) + len(troubled)), len(troubled)))
    rows = list(healthy)
    for place, row in zip(places, troubled, strict=True):
        rows.insert(place, row)
    assert tokens_of(tokenizer, folder / "beside.parquet", rows) == alone
    assert len(alone[0]) > 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.just(5), TIMES, CODES, VALUES), min_size=1, max_size=12))
def test_no_trouble_becomes_a_flood_of_tokens(tokenizer, tmp_path_factory, troubled):
    path = tmp_path_factory.mktemp("held_out") / "0.parquet"
    write_events(path, troubled)
    table = tokenizer.encode(read_events(path))
    # A life of 130 years has 260 half years, the longest interval; an event becomes three tokens at most.
    assert len(table.token) <= 270 + 4 * len(troubled) + 260
    assert pl.Series(table.time).is_between(-3_800_000_000_000_000, 4_102_444_800_000_000).all()
