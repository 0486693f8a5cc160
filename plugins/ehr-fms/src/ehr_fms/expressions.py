"""Expressions of settings, parsed by a small grammar into Polars expressions. Nothing is evaluated as code.

    or:          and ("or" and)*
    and:         not ("and" not)*
    not:         "not" not | comparison
    comparison:  sum [("==" | "!=" | "<" | "<=" | ">" | ">=") sum | ["not"] "in" "(" literal ("," literal)* ")"]
    sum:         product (("+" | "-") product)*
    product:     sign (("*" | "/") sign)*
    sign:        "-" sign | primary
    primary:     NUMBER | 'TEXT' | "TEXT" | true | false | COLUMN | FUNCTION "(" or ("," or)* ")" | "(" or ")"

Functions: starts_with, ends_with, contains (text, text: a part of it, no pattern), lower, upper, abs, is_null. What is
compared with a missing value is missing, and a filter that is missing is not met.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import polars as pl
from ehr_core.config import nearest
from ehr_core.errors import ConfigError

NUMBER, TEXT, TRUTH = "number", "text", "truth value"
LONGEST, DEEPEST = 2_000, 40
WORDS = ("and", "or", "not", "in", "true", "false")
PIECES = re.compile(
    r"""\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_]\w*)
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<sign>==|!=|<=|>=|[-+*/<>(),])|(?P<end>$))""",
    re.VERBOSE,
)
COMPARE: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "==": pl.Expr.eq, "!=": pl.Expr.ne, "<": pl.Expr.lt, "<=": pl.Expr.le, ">": pl.Expr.gt, ">=": pl.Expr.ge,
}  # fmt: skip
CALCULATE: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "+": pl.Expr.add, "-": pl.Expr.sub, "*": pl.Expr.mul, "/": pl.Expr.truediv,
}  # fmt: skip
FUNCTIONS: dict[str, tuple[tuple[str, ...], str, Callable[..., pl.Expr]]] = {
    "starts_with": ((TEXT, TEXT), TRUTH, lambda a, b: a.str.starts_with(b)),
    "ends_with": ((TEXT, TEXT), TRUTH, lambda a, b: a.str.ends_with(b)),
    "contains": ((TEXT, TEXT), TRUTH, lambda a, b: a.str.contains(b, literal=True)),
    "lower": ((TEXT,), TEXT, lambda a: a.str.to_lowercase()),
    "upper": ((TEXT,), TEXT, lambda a: a.str.to_uppercase()),
    "abs": ((NUMBER,), NUMBER, lambda a: a.abs()),
    "is_null": (("",), TRUTH, lambda a: a.is_null()),
}
"""Name to what it takes (empty: anything), what it gives, and how."""


@dataclass(frozen=True)
class _Piece:
    kind: str
    text: str
    at: int


@dataclass(frozen=True)
class _Part:
    """A parsed part: what it is, its expression, and where it starts."""

    kind: str
    expression: pl.Expr
    at: int


def parse(text: str, columns: Mapping[str, str], wanted: str, where: str) -> pl.Expr:
    """The expression ``text`` over columns (name to ``number`` or ``text``), which must give ``wanted``.

    Raises ConfigError with ``where``, what is wrong, and at which character.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{where} is {text!r}; expected an expression in quotes")
    return _Parser(text, columns, where).all(wanted)


class _Parser:
    def __init__(self, text: str, columns: Mapping[str, str], where: str):
        self.text, self.columns, self.where, self.depth = text, columns, where, 0
        if len(text) > LONGEST:
            raise ConfigError(f"{where}: the expression has {len(text)} characters; at most {LONGEST} are allowed")
        self.pieces: list[_Piece] = []
        at = 0
        while not self.pieces or self.pieces[-1].kind != "end":
            found = PIECES.match(text, at)
            if found is None:
                self.fail("cannot read this", at + len(text[at:]) - len(text[at:].lstrip()))
            assert found.lastgroup is not None
            start, at = found.span(found.lastgroup)
            self.pieces.append(_Piece(found.lastgroup, found[found.lastgroup], start))
        self.pieces.reverse()

    def fail(self, message: str, at: int) -> NoReturn:
        raise ConfigError(f"{self.where}: {message} at character {at + 1} of {self.text!r}")

    # -- pieces

    @property
    def next(self) -> _Piece:
        return self.pieces[-1]

    def take(self, *texts: str) -> str | None:
        """The next piece if it is one of these words or signs."""
        if self.next.kind in ("word", "sign") and self.next.text in texts:
            return self.pieces.pop().text
        return None

    def expect(self, text: str) -> None:
        if self.take(text) is None:
            self.fail(f"expected {text!r}, found {self.next.text or 'the end'!r}", self.next.at)

    def need(self, part: _Part, kind: str) -> pl.Expr:
        if part.kind != kind:
            self.fail(f"expected a {kind}, found a {part.kind}", part.at)
        return part.expression

    # -- grammar

    def all(self, wanted: str) -> pl.Expr:
        part = self.either()
        if self.next.kind != "end":
            self.fail(f"did not expect {self.next.text!r}", self.next.at)
        return self.need(part, wanted)

    def either(self) -> _Part:
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(f"more than {DEEPEST} levels of parentheses", self.next.at)
        part = self.both()
        while self.take("or"):
            part = _Part(TRUTH, self.need(part, TRUTH) | self.need(self.both(), TRUTH), part.at)
        self.depth -= 1
        return part

    def both(self) -> _Part:
        part = self.negated()
        while self.take("and"):
            part = _Part(TRUTH, self.need(part, TRUTH) & self.need(self.negated(), TRUTH), part.at)
        return part

    def negated(self) -> _Part:
        at, odd = self.next.at, False
        any_ = False
        while self.take("not"):
            odd, any_ = not odd, True
        part = self.comparison()
        if not any_:
            return part
        truth = self.need(part, TRUTH)
        return _Part(TRUTH, ~truth if odd else truth, at)

    def comparison(self) -> _Part:
        left = self.sum()
        if sign := self.take(*COMPARE):
            right = self.sum()
            if left.kind != right.kind:
                self.fail(f"compares a {left.kind} with a {right.kind}", right.at)
            if left.kind == TRUTH and sign not in ("==", "!="):
                self.fail("truth values have no order", right.at)
            return _Part(TRUTH, COMPARE[sign](left.expression, right.expression), left.at)
        inverse = self.take("not") is not None
        if self.take("in"):
            inside = self.members(left)
            return _Part(TRUTH, ~inside if inverse else inside, left.at)
        if inverse:
            self.fail("expected 'in' after 'not'", self.next.at)
        return left

    def members(self, left: _Part) -> pl.Expr:
        values: list[float | str] = []
        self.expect("(")
        while True:
            at = self.next.at
            minus = self.take("-") is not None
            kind, text = self.next.kind, self.next.text
            if kind not in ("number", "text") or (minus and kind == "text"):
                self.fail("expected a number or a text in quotes", at)
            if kind != left.kind:
                self.fail(f"looks for a {kind} among which a {left.kind} cannot be", at)
            self.pieces.pop()
            values.append(_unquote(text) if kind == "text" else (-1 if minus else 1) * float(text))
            if not self.take(","):
                break
        self.expect(")")
        kinds = pl.Float64 if left.kind == NUMBER else pl.String
        return left.expression.is_in(pl.Series(values, dtype=kinds).implode())

    def sum(self) -> _Part:
        part = self.product()
        while sign := self.take("+", "-"):
            right = self.need(self.product(), NUMBER)
            part = _Part(NUMBER, CALCULATE[sign](self.need(part, NUMBER), right), part.at)
        return part

    def product(self) -> _Part:
        part = self.signed()
        while sign := self.take("*", "/"):
            right = self.need(self.signed(), NUMBER)
            part = _Part(NUMBER, CALCULATE[sign](self.need(part, NUMBER), right), part.at)
        return part

    def signed(self) -> _Part:
        at, odd, any_ = self.next.at, False, False
        while self.take("-"):
            odd, any_ = not odd, True
        part = self.primary()
        if not any_:
            return part
        number = self.need(part, NUMBER)
        return _Part(NUMBER, -number if odd else number, at)

    def primary(self) -> _Part:
        piece = self.next
        if self.take("("):
            part = self.either()
            self.expect(")")
            return part
        if truth := self.take("true", "false"):
            return _Part(TRUTH, pl.lit(truth == "true"), piece.at)
        if piece.kind == "end" or piece.kind == "sign" or piece.text in WORDS:
            self.fail(f"expected a value, found {piece.text or 'the end'!r}", piece.at)
        self.pieces.pop()
        if piece.kind == "number":
            return _Part(NUMBER, pl.lit(float(piece.text)), piece.at)
        if piece.kind == "text":
            return _Part(TEXT, pl.lit(_unquote(piece.text)), piece.at)
        if self.take("("):
            return self.call(piece)
        if piece.text not in self.columns:
            self.fail(f"no column {piece.text!r}.{nearest(piece.text, self.columns)} Found", piece.at)
        return _Part(self.columns[piece.text], pl.col(piece.text), piece.at)

    def call(self, piece: _Piece) -> _Part:
        if piece.text not in FUNCTIONS:
            self.fail(f"no function {piece.text!r}.{nearest(piece.text, FUNCTIONS)} Found", piece.at)
        takes, gives, make = FUNCTIONS[piece.text]
        parts = [self.either()]
        while self.take(","):
            parts.append(self.either())
        self.expect(")")
        if len(parts) != len(takes):
            self.fail(f"{piece.text} takes {len(takes)} values, found {len(parts)}", piece.at)
        found = [self.need(part, kind or part.kind) for part, kind in zip(parts, takes, strict=True)]
        return _Part(gives, make(*found), piece.at)


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])
