"""What expressions mean, compared with Python's own answer, and what is said about those that are none."""

import contextlib
import operator

import polars as pl
import pytest
from ehr_core.errors import ConfigError
from ehr_fms.expressions import NUMBER, TEXT, TRUTH, parse
from hypothesis import given, settings
from hypothesis import strategies as st

COLUMNS = {"code": TEXT, "numeric_value": NUMBER, "hours": NUMBER}
FRAME = pl.DataFrame(
    {
        "code": ["LAB//K", "LAB//GLU", "Note", None],
        "numeric_value": [1.5, None, -2.0, 0.0],
        "hours": [0.0, 24.0, 5.0, 5.0],
    }
)


def answer(text, wanted=TRUTH):
    return FRAME.with_columns(parse(text, COLUMNS, wanted, "here").alias("#"))["#"].to_list()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("numeric_value > 1", [True, None, False, False]),
        ("numeric_value >= 0 and hours < 24", [True, False, False, True]),
        ("not numeric_value < 0 or code == 'Note'", [True, None, True, True]),
        ("numeric_value == -2", [False, None, True, False]),
        ("numeric_value != 0", [True, None, True, False]),
        ("starts_with(code, 'LAB//')", [True, True, False, None]),
        ('ends_with(code, "GLU")', [False, True, False, None]),
        ("contains(lower(code), 'o.e')", [False, False, False, None]),  # a dot is a dot
        ("contains(upper(code), 'NOT')", [False, False, True, None]),
        ("code in ('LAB//K', 'Note')", [True, False, True, None]),
        ("numeric_value not in (1.5, -2)", [False, None, False, True]),
        ("is_null(numeric_value) or is_null(code)", [False, True, False, True]),
        ("abs(numeric_value) * 2 + hours / 4 - 1 > 3.5", [False, None, True, False]),
        ("(1 + 2) * 3 == 9 and 1 + 2 * 3 == 7 and 8 - 4 - 2 == 2 and --2 == 2", [True] * 4),
        ("not not true != false", [True] * 4),
        ("false or true and false", [False] * 4),
        (r"code == 'it\'s' or true", [True] * 4),
    ],
)
def test_an_expression_means_what_it_says(text, expected):
    assert answer(text) == expected


def test_a_number_is_calculated_from_columns():
    assert answer("(numeric_value - 32) / 1.8 + .5e1", NUMBER) == pytest.approx(
        [-11.944444, None, -13.888889, -12.777778]
    )
    assert answer("numeric_value", NUMBER) == [1.5, None, -2.0, 0.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a value, found 'the end' at character 1"),
        ("nmeric_value > 3", "no column 'nmeric_value'. Did you mean numeric_value\\?.* at character 1"),
        ("hours > 3 and numeric_value = 3", "cannot read this at character 29"),
        ("hours > 'a'", "compares a number with a text at character 9"),
        ("hours > 3 hours", "did not expect 'hours' at character 11"),
        ("(hours > 3", "expected '\\)', found 'the end' at character 11"),
        ("hours + code > 3", "expected a number, found a text at character 9"),
        ("hours", "expected a truth value, found a number at character 1"),
        ("code and true", "expected a truth value, found a text at character 1"),
        ("starts_with(code)", "starts_with takes 2 values, found 1 at character 1"),
        ("starts_with(code, 3)", "expected a text, found a number at character 19"),
        ("start_with(code, 'a')", "no function 'start_with'. Did you mean starts_with"),
        ("code in ('a', 3)", "looks for a number among which a text cannot be at character 15"),
        ("code in 'a'", "expected '\\(', found \"'a'\" at character 9"),
        ("code not 'a'", "expected 'in' after 'not' at character 10"),
        ("1 < hours < 3", "did not expect '<' at character 11"),
        ("true < false", "truth values have no order"),
        ("hours == 'unfinished", "cannot read this at character 10"),
        ("__import__('os')", "no function '__import__'"),
        ("code.system('true')", "cannot read this at character 5"),
        ("hours.real > 1", "cannot read this at character 6"),
        ("code[0] == 'a'", "cannot read this at character 5"),
        ("lambda: 1", "cannot read this"),
        ("(" * 60 + "1" + ")" * 60, "more than 40 levels"),
        ("true or " * 300 + "true", "at most 2000 are allowed"),
        (17, "is 17; expected an expression in quotes"),
    ],
)
def test_what_is_no_expression_is_one_clear_line_with_the_place(text, message):
    with pytest.raises(ConfigError, match=f"(?s)^tokenizer.events\\[2\\].filter.*{message}") as caught:
        parse(text, COLUMNS, TRUTH, "tokenizer.events[2].filter")
    assert "\n" not in str(caught.value)


numbers = st.integers(-5, 5)
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "<": operator.lt, ">=": operator.ge,
             "==": operator.eq, "and": lambda a, b: a and b, "or": lambda a, b: a or b}  # fmt: skip


@st.composite
def sums(draw, depth=3):
    if depth == 0 or draw(st.booleans()):
        return str(draw(st.integers(0, 9)))
    return draw(st.sampled_from(["{} + {}", "{} - {}", "{} * {}", "({} - {})", "-({} + {})"])).format(
        draw(sums(depth=depth - 1)), draw(sums(depth=depth - 1))
    )


@st.composite
def truths(draw, depth=3):
    if depth == 0 or draw(st.booleans()):
        sign = draw(st.sampled_from(["<", "<=", "==", "!=", ">", ">="]))
        return f"{draw(sums(depth=1))} {sign} {draw(sums(depth=1))}"
    return draw(st.sampled_from(["{} and {}", "{} or {}", "not {} or {}", "({} or {})", "not ({} and {})"])).format(
        draw(truths(depth=depth - 1)), draw(truths(depth=depth - 1))
    )


@settings(max_examples=200, deadline=None)
@given(truths(), sums())
def test_operators_bind_as_in_python(truth, number):
    frame = pl.DataFrame({"x": [0]})
    found = frame.select(parse(truth, {}, TRUTH, "t").alias("t"), parse(number, {}, NUMBER, "n").alias("n"))
    assert found.row(0) == (eval(truth), eval(number))  # Python itself is the reference


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abcehours_ ()'\"\\<>=!+-*/.,0123456789\nnotin", max_size=30))
def test_any_text_is_an_expression_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        FRAME.with_columns(parse(text, COLUMNS, NUMBER, "here").alias("#"))
