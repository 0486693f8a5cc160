"""What must hold for every tokenizer on any records: properties, tried on random ones (Hypothesis).

Plain functions of (kind, component, scratch folder), as in `checks`. The tokenizer has its default settings and is
fitted on the tiny dataset. Without the package hypothesis they raise NotApplicable.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ehr_core.component import Component
from ehr_core.errors import FormatError, NotApplicable
from ehr_core.formats.intervals import Intervals
from ehr_core.formats.tokens import NO_TIME, TokenTable, prefix_tokens
from ehr_core.formats.vocabulary import BOS, EOS, MASK, PAD, UNK
from ehr_core.testing.base import Check, small_settings
from ehr_core.testing.tiny import SUBJECTS, subject_rows

if TYPE_CHECKING:
    import polars as pl

Row = tuple[int, datetime | None, str, float | None]
START = datetime(2015, 1, 1, 9, 30)
UNSEEN = "NEVER//SEEN//BEFORE"
MEASURED = ("LAB//glucose//mg/dL", "LAB//lactate//mmol/L", "DIAGNOSIS//ICD10CM//I10", UNSEEN)
"""Codes whose rows mean the same in any order within an instant."""
BORDERS = ("HOSPITAL_ADMISSION//EMERGENCY", "HOSPITAL_DISCHARGE//HOME", "MEDS_DEATH")
STATIC = ("GENDER//F", "GENDER//M")
GAPS = (0, 0, 0, 4, 30, 600, 1440, 20_000, 300_000)
"""Minutes between events; several share an instant."""


def _given(examples: int, *strategies: Any) -> Callable[[Callable[..., None]], None]:
    """Run the decorated function at once, on so many random values; the same ones each time."""
    from hypothesis import HealthCheck, Phase, given, settings

    def run(test: Callable[..., None]) -> None:
        limits: Any = settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],  # a smaller example would cost many fits
            suppress_health_check=list(HealthCheck),
        )
        decorate: Any = given(*strategies)
        limits(decorate(test))()

    return run


def _strategies() -> Any:
    try:
        from hypothesis import strategies
    except ImportError:
        raise NotApplicable("the package hypothesis is not installed, so properties are not tried") from None
    return strategies


def _records(statics_change: bool = True) -> Any:
    """A strategy for the rows of one subject, whose id is 900."""
    st = _strategies()
    # Whole numbers, so that sums do not depend on their order.
    value = st.one_of(st.none(), st.integers(-3, 300).map(float))
    codes = st.sampled_from([*MEASURED, *MEASURED, *BORDERS, *(STATIC if statics_change else ())])
    steps = st.lists(st.tuples(st.sampled_from(GAPS), codes, value), min_size=1, max_size=16)
    static = st.lists(st.sampled_from(["GENDER//F", "GENDER//M", "HEIGHT", UNSEEN]), max_size=2)

    def rows(found: tuple[Any, Any, bool]) -> list[Row]:
        statics, events, born = found
        made: list[Row] = [(900, None, code, 170.0 if code == "HEIGHT" else None) for code in statics]
        if born:
            made.append((900, datetime(1955, 6, 1), "MEDS_BIRTH", None))
        now = START
        for gap, code, number in events:
            now += timedelta(minutes=gap)
            made.append((900, now, code, number))
        return made

    return st.tuples(static, steps, st.booleans()).map(rows)


def _frame(rows: Sequence[Row]) -> pl.DataFrame:
    import polars as pl

    schema: Any = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    return pl.DataFrame(list(rows), schema, orient="row")


@cache
def _cohort() -> list[list[Row]]:
    return [subject_rows(subject) for subject in SUBJECTS["train"]]


def _fitted(component: Component, shards: Sequence[Sequence[Row]], **values: Any) -> Any:
    tokenizer = component.load()(small_settings(component, **values))
    tokenizer.fit([tokenizer.summarize(_frame(rows)) for rows in shards])
    return tokenizer


def _whole(component: Component, **values: Any) -> Any:
    return _fitted(component, [list(itertools.chain.from_iterable(_cohort()))], **values)


def _micros(time: datetime) -> int:
    return int(np.datetime64(time, "us").astype(np.int64))


def _same(one: TokenTable, two: TokenTable) -> None:
    for name, array in one.arrays().items():
        other = two.arrays()[name]
        assert array.dtype == other.dtype, f"{name} has another type"
        assert np.array_equal(array, other, equal_nan=array.dtype.kind == "f"), f"{name} differs"


def _cut(table: TokenTable, limit: int, end: Sequence[int]) -> dict[str, np.ndarray]:
    """What is visible of a table of one subject at a time, but for tokens that close a timeline."""
    seen = (table.time <= limit) & ~np.isin(table.token, end)
    found = {name: array[seen] for name, array in {"token": table.token, "time": table.time, **table.columns}.items()}
    known = table.static_time <= limit  # NO_TIME is below every time
    return found | {name: getattr(table, name)[known] for name in ("static_slot", "static_token", "static_time")}


def check_tokenizer_knows_only_the_past(kind: str, component: Component, folder: Path) -> None:
    """What is visible at an event's time is the same whether or not the record goes on, prefix included."""
    tokenizer = _whole(component)
    end = tokenizer.vocabulary.ids_of_kind("end")

    @_given(60, _records())
    def holds(rows: list[Row]) -> None:
        whole = tokenizer.encode(_frame(rows))
        times = sorted({time for _, time, code, _ in rows if time is not None and code in (*MEASURED, *BORDERS)})
        for time in times:
            part = tokenizer.encode(_frame([row for row in rows if row[1] is None or row[1] <= time]))
            limit = _micros(time)
            one, two = _cut(whole, limit, end), _cut(part, limit, end)
            for name, array in one.items():
                assert np.array_equal(array, two[name], equal_nan=array.dtype.kind == "f"), f"{name} at {time}"
            before, after = (prefix_tokens(tokenizer.prefix, table, 0, limit) for table in (part, whole))
            assert np.array_equal(before, after), f"the prefix at {time} changes when later events are known"


def check_tokenizer_ignores_the_order_of_an_instant(kind: str, component: Component, folder: Path) -> None:
    """Rows of one instant give the same tokens in any order; only the order of these tokens may follow the rows."""
    tokenizer = _whole(component)
    st = _strategies()

    def described(rows: list[Row]) -> Counter[tuple[Any, ...]]:
        table = tokenizer.encode(_frame(rows))
        columns = [np.nan_to_num(array, nan=-1.0).tolist() for _, array in sorted(table.columns.items())]
        return Counter(zip(table.time.tolist(), table.token.tolist(), *columns, strict=True))

    @_given(60, _records(statics_change=False), st.randoms(use_true_random=False))
    def holds(rows: list[Row], random: Any) -> None:
        mixed = list(rows)
        for _, group in itertools.groupby(range(len(rows)), key=lambda place: rows[place][1]):
            places = [place for place in group if rows[place][2] in MEASURED and rows[place][1] is not None]
            for place, source in zip(places, random.sample(places, len(places)), strict=True):
                mixed[place] = rows[source]
        assert described(rows) == described(mixed), "the order of rows of one instant changes the tokens"


def check_tokenizer_ignores_how_records_are_sharded(kind: str, component: Component, folder: Path) -> None:
    """Any cut of train into shards, in any order, fits the same; nobody's tokens depend on who shares the shard."""
    st = _strategies()
    numbers = itertools.count()

    @_given(12, _records(), st.integers(0, 16), st.booleans())
    def holds(more: list[Row], cut: int, reverse: bool) -> None:
        cohort = [*_cohort(), more]
        together = list(itertools.chain.from_iterable(cohort))
        parts = [list(itertools.chain.from_iterable(part)) for part in (cohort[:cut], cohort[cut:]) if part]
        one, two = _fitted(component, [together]), _fitted(component, parts[::-1] if reverse else parts)
        saved = []
        for tokenizer in (one, two):
            state = folder / str(next(numbers))
            state.mkdir()
            tokenizer.save(state)
            saved.append({path.name: path.read_bytes() for path in state.iterdir()})
        assert saved[0] == saved[1], "the way that train is sharded changes what is fitted"
        table = one.encode(_frame(together))
        alone = [two.encode(_frame(rows)) for rows in cohort]
        for name in ("token", "time", "birth", "static_slot", "static_token", "static_time", *sorted(one.columns)):
            joined = np.concatenate([part.arrays()[name] for part in alone])
            assert np.array_equal(table.arrays()[name], joined, equal_nan=joined.dtype.kind == "f"), f"{name} differs"


def check_tokenizer_is_the_same_after_loading(kind: str, component: Component, folder: Path) -> None:
    """Saved and loaded, it encodes any record as before, and saves the same bytes again."""
    tokenizer, again = _whole(component), component.load()(small_settings(component))
    first, second = folder / "first", folder / "second"
    for state in (first, second):
        state.mkdir()
    tokenizer.save(first)
    again.load(first)
    again.save(second)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), f"{path.name} is another after loading"

    @_given(40, _records())
    def holds(rows: list[Row]) -> None:
        _same(tokenizer.encode(_frame(rows)), again.encode(_frame(rows)))


def check_tokenizer_treats_missing_numbers_alike(kind: str, component: Component, folder: Path) -> None:
    """A number that is null, NaN or infinite gives the same tokens, and that of an unseen code none of its own."""
    tokenizer = _whole(component)
    st = _strategies()

    def tokens(rows: list[Row]) -> Counter[int]:
        return Counter(tokenizer.encode(_frame(rows)).token.tolist())

    @_given(40, _records(), st.data())
    def holds(rows: list[Row], data: Any) -> None:
        # Only events that have none: one with a number may well be a token that one without is not.
        odd = st.sampled_from([float("nan"), float("inf"), float("-inf")])
        strange = [(*row[:3], data.draw(odd) if row[3] is None and row[1] else row[3]) for row in rows]
        _same(tokenizer.encode(_frame(rows)), tokenizer.encode(_frame(strange)))
        bare = [(*row[:3], None if row[2] == UNSEEN else row[3]) for row in rows]
        more = tokens(rows) - tokens(bare)
        assert set(more) <= {UNK}, "the number of an unseen code became a token"


def check_tokenizer_decodes_to_its_record(kind: str, component: Component, folder: Path) -> None:
    """Tokens are in order of time, each code that they name was seen by then, and each number in ``value`` as well."""
    tokenizer = _whole(component, value=True)
    vocabulary = tokenizer.vocabulary
    named = [set(token.codes) for token in vocabulary.tokens]

    @_given(60, _records())
    def holds(rows: list[Row]) -> None:
        table = tokenizer.encode(_frame(rows))
        assert table.offset.tolist() == [0, len(table.token)]
        assert {name: array.dtype.name for name, array in table.columns.items()} == dict(tokenizer.columns)
        assert all(len(array) == len(table.token) for array in (table.time, *table.columns.values()))
        assert (np.diff(table.time) >= 0).all(), "tokens are not in order of time"
        assert NO_TIME not in table.time, "a token has no time"
        assert not set(table.token.tolist()) & {PAD, BOS, EOS, MASK}, "a token is there that models put in"
        assert all(row < len(tokenizer.prefix.slots) for row in table.static_slot.tolist())
        value = table.columns.get("value", np.full(len(table.token), np.nan))
        for index, time, number in zip(table.token.tolist(), table.time.tolist(), value.tolist(), strict=True):
            past = [row for row in rows if row[1] is None or _micros(row[1]) <= time]
            codes = {code for _, _, code, _ in past}
            assert not named[index] or named[index] & codes, f"{vocabulary.tokens[index].token!r} stands for nothing"
            its = {found for _, _, code, found in past if index == UNK or code in named[index]}
            assert np.isnan(number) or number in its, "a number is at a token that it does not belong to"


NEW_SITE = {MEASURED[0]: "LAB//never fitted//mg/dL"}
"""A code of the first site to what the second one has in its place."""


def check_tokenizer_says_what_it_is(kind: str, component: Component, folder: Path) -> None:
    """Columns, columns of events, and lengths of tokens for time are of the types that the protocol names."""
    tokenizer = _whole(component)
    for name, dtype in tokenizer.columns.items():
        assert np.dtype(dtype).name == dtype, f"column {name} is {dtype!r}, which is no numpy dtype"
    assert all(isinstance(name, str) for name in tokenizer.event_columns)
    assert isinstance(tokenizer.intervals, Intervals), "intervals is no Intervals"
    vocabulary = tokenizer.vocabulary
    wanted = {vocabulary.tokens[index].token for index in vocabulary.ids_of_kind("interval")}
    assert set(tokenizer.intervals.tokens) == wanted, "intervals are of other tokens than those of kind 'interval'"
    tokenizer.save(folder)
    assert Intervals.load(folder) == tokenizer.intervals, "intervals.json says something else"


def check_tokenizer_summary_survives_being_kept(kind: str, component: Component, folder: Path) -> None:
    """A summary that was written to disk, as its type says, and read again fits the same."""
    try:
        from ehr_tokenize.fit import summaries
    except ImportError:
        raise NotApplicable("ehr-tokenize, which keeps summaries, is not installed") from None
    direct = _whole(component)
    if direct.summary_type is None:
        raise NotApplicable(f"summaries of {component.name} stay in memory (summary_type is None)")
    again, kept = direct.unfitted(), []
    for number, rows in enumerate(_cohort()):
        path = folder / f"{number}.safetensors"
        try:
            summaries.keep(again.summary_type, again.summarize(_frame(rows)), path)
            kept.append(summaries.recall(again.summary_type, path))
        except (FormatError, TypeError) as error:
            raise AssertionError(f"a summary is no {again.summary_type}: {error}") from error
    again.fit(kept)
    assert again.vocabulary.tokens == direct.vocabulary.tokens, "kept summaries give another vocabulary"
    everyone = _frame(list(itertools.chain.from_iterable(_cohort())))
    _same(again.encode(everyone), direct.encode(everyone))


def check_tokenizer_grows(kind: str, component: Component, folder: Path) -> None:
    """What a second site has besides gets ids at the end; ids and the tokens of the first site stay."""
    rows = list(itertools.chain.from_iterable(_cohort()))
    more = [(subject, time, NEW_SITE.get(code, code), value) for subject, time, code, value in rows]
    (new_code,) = NEW_SITE.values()
    old, tokenizer = _whole(component), _whole(component)
    new = old.unfitted()
    new.fit([new.summarize(_frame(more))])
    tokenizer.grow(new)
    size = len(old.vocabulary)
    same = [(token.token, token.kind, token.count) for token in old.vocabulary.tokens]
    assert [(t.token, t.kind, t.count) for t in tokenizer.vocabulary.tokens[:size]] == same, "an old id has changed"
    _same(tokenizer.encode(_frame(rows)), old.encode(_frame(rows)))
    assert any(new_code in token.codes for token in tokenizer.vocabulary.tokens[size:]), "the new code has no token"
    assert old.unknown_events(_frame(more)).get(new_code), "the new code was not unknown before"
    assert not tokenizer.unknown_events(_frame(more)).get(new_code), "the new code is unknown still"


def check_tokenizer_counts_what_it_does_not_know(kind: str, component: Component, folder: Path) -> None:
    """Unknown events are those of unseen codes, as often as they occur, and nothing is unknown and left out at once."""
    tokenizer = _whole(component)
    rows = list(_cohort()[0])
    subject, time, *_ = rows[-2]
    rows[-1:-1] = [(subject, time, UNSEEN, 4.0)] * 3  # within the last stay, before its end
    unknown, left_out = tokenizer.unknown_events(_frame(rows)), tokenizer.left_out_events(_frame(rows))
    assert unknown.get(UNSEEN) == 3, f"three events of an unseen code count as {unknown.get(UNSEEN, 0)} unknown ones"
    assert not set(unknown) & set(left_out), "an event is unknown and left out on purpose at once"


PROPERTIES: list[Check] = [
    check_tokenizer_says_what_it_is,
    check_tokenizer_summary_survives_being_kept,
    check_tokenizer_grows,
    check_tokenizer_counts_what_it_does_not_know,
    check_tokenizer_knows_only_the_past,
    check_tokenizer_ignores_the_order_of_an_instant,
    check_tokenizer_ignores_how_records_are_sharded,
    check_tokenizer_is_the_same_after_loading,
    check_tokenizer_treats_missing_numbers_alike,
    check_tokenizer_decodes_to_its_record,
]
