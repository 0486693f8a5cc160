"""The ETL's specification, cut down to the tables and columns that are there.

As it is shipped it names every table of MIMIC-IV and nine files beside it, and the ETL stops at the first that is
missing. What can be told of the rest is told here, without a file being opened:

    table          without it: its events
    column         the events whose code or time need it, else the value that it would have given
    join           the columns that it would have brought, as if they were missing
    dictionary     descriptions and parents of codes; the codes are the same

An expression can do without a column that has a substitute (``$medication ?? 'UNK'``, ``coalesce(...)``): such a column
is made, without values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RESERVED = ("etl", "sources")
SELF = "_self"
REFERENCE = re.compile(r"\$(\w+)")
STRICT_TIME = re.compile(r'\$(\w+)::"([^"]+)"')
PLAIN = re.compile(r"\$(\w+)")
NOTHING = "'' if 'a' == 'b'"
"""An expression of the ETL's language that is null, as text; the language has no word for it."""

Columns = Mapping[str, frozenset[str]]
"""Table to the columns that it has."""


@dataclass
class LeftOut:
    """What a specification lost, and why."""

    tables: dict[str, str] = field(default_factory=dict)
    """Table to reason."""
    events: dict[str, list[str]] = field(default_factory=dict)
    """``table/event`` to the columns that are missing."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """Table to missing columns that its events do without."""
    dictionaries: dict[str, str] = field(default_factory=dict)
    """File of descriptions and parents to reason."""


@dataclass
class Needs:
    """What the values of a table's columns must be for the ETL to get through."""

    subjects: bool = False
    """Its rows are events of subjects."""
    times: dict[str, str] = field(default_factory=dict)
    """Column to the format of every time in it."""
    numbers: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    """Columns that join it to another table."""


def tables_of(spec: Mapping[str, Any]) -> dict[str, bool]:
    """Every file that the specification names, in its order; True for those that it can lose without an event."""
    found: dict[str, bool] = {}
    books: list[str] = []
    for name, block in spec.items():
        if name not in RESERVED:
            found[name] = False
            found.update(dict.fromkeys(block.get("_table", {}).get("join", {}), False))
            books += [b for event in events_of(block).values() for b in event.get("_metadata", {}) if b != SELF]
    return found | {book: True for book in books if book not in found}


def events_of(block: Mapping[str, Any]) -> dict[str, Any]:
    """The events of a table's block."""
    return {name: body for name, body in block.items() if not name.startswith("_")}


def references(expression: Any) -> set[str]:
    """Columns that an expression names."""
    if isinstance(expression, str):
        return set(REFERENCE.findall(expression))
    if isinstance(expression, Mapping):
        if "column" in expression:  # the form for names that are no single word
            return {str(expression["column"])}
        return set().union(*map(references, expression.values()))
    return set().union(*map(references, expression)) if isinstance(expression, list) else set()


def required(expression: Any, known: set[str]) -> set[str]:
    """Columns that are missing and that the expression has no substitute for."""
    missing = references(expression) - known
    if isinstance(expression, str):
        if "coalesce(" in expression:
            return set()
        return {name for name in missing if not re.search(rf"\${name}\s*\?\?", expression)}
    return missing


def prune(spec: Mapping[str, Any], columns: Columns) -> tuple[dict[str, Any], LeftOut]:
    """The part of a specification that these columns allow, without its reserved blocks, and what was left out."""
    left = LeftOut()
    kept: dict[str, Any] = {}
    for name, block in spec.items():
        if name in RESERVED:
            continue
        if name not in columns:
            left.tables[name] = "absent"
            continue
        found = _prune_table(name, block, columns, left)
        if events_of(found):
            kept[name] = found
        else:
            left.tables[name] = "without a join or column, none of its events is left"
    return kept, left


def _prune_table(name: str, block: Mapping[str, Any], columns: Columns, left: LeftOut) -> dict[str, Any]:
    table = block.get("_table", {})
    derived = table.get("cols", {})
    join = _prune_join(table.get("join", {}), columns[name] | set(derived), columns)
    known = set(columns[name]).union(*(body["cols"] for body in join.values()))
    void: set[str] = set()  # columns that are missing, and made without values
    cols: dict[str, Any] = {}
    for column, expression in derived.items():
        if not required(expression, known):
            void |= references(expression) - known
            known.add(column)
            cols[column] = expression
    kept: dict[str, Any] = {}
    lost: set[str] = set()
    for event, body in events_of(block).items():
        needs = set().union(*(_decisive(body.get(part), known) for part in ("code", "time")))
        if needs:
            left.events[f"{name}/{event}"] = sorted(needs)
            continue
        kept[event] = {}
        for key, expression in body.items():
            if key == "_metadata":
                expression = _prune_metadata(expression, known, columns, left)
                if not expression:
                    continue
                void |= references(expression.get(SELF)) - known
            elif without := required(expression, known):
                lost |= without
                continue
            else:
                void |= references(expression) - known
            kept[event][key] = expression
    if lost | void:
        left.columns[name] = sorted(lost | void)
    whole = {"cols": dict.fromkeys(sorted(void), NOTHING) | cols, "join": join}
    return {name: body for name, body in block.items() if name == "_defaults"} | {
        "_table": {part: value for part, value in whole.items() if value},
        **kept,
    }


def _decisive(expression: Any, known: set[str]) -> set[str]:
    """Missing columns without which a code or a time is nothing: those without substitute, or all that it names."""
    used = references(expression)
    return used if used and not used & known else required(expression, known)


def _prune_join(join: Mapping[str, Any], own: set[str] | frozenset[str], columns: Columns) -> dict[str, Any]:
    """The join without columns that the other table lacks; empty when a table or key is missing."""
    kept = {}
    for right, body in join.items():
        there = columns.get(right, frozenset())
        left_on, right_on = keys_of(body)
        cols = body["cols"]
        found = {c: how for c, how in cols.items() if c in there} if isinstance(cols, Mapping) else there & set(cols)
        if set(left_on) <= own and set(right_on) <= there and found:
            kept[right] = {**body, "cols": found if isinstance(cols, Mapping) else [c for c in cols if c in found]}
    return kept


def keys_of(body: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Columns of the left and of the right table that a join compares."""
    sides = body.get("left_on", body.get("key")), body.get("right_on", body.get("key"))
    left, right = ([side] if isinstance(side, str) else list(side or ()) for side in sides)
    return left, right


def _prune_metadata(books: Mapping[str, Any], known: set[str], columns: Columns, left: LeftOut) -> dict[str, Any]:
    """The dictionaries of an event that are there and complete."""
    kept = {}
    for book, block in books.items():
        if book == SELF:
            if any(required(expression, known) for expression in block.values()):
                continue
        elif book not in columns:
            left.dictionaries[book] = "absent"
            continue
        elif missing := references(block) - columns[book]:
            left.dictionaries[book] = f"lacks {', '.join(sorted(missing))}"
            continue
        kept[book] = block
    return kept


def needs_of(spec: Mapping[str, Any]) -> dict[str, Needs]:
    """What a specification asks of the files that it names; of dictionaries, nothing but that they can be read."""
    found = {name: Needs() for name in tables_of(spec)}
    for name, block in spec.items():
        needs = found[name]
        needs.subjects = True
        table = block.get("_table", {})
        owner = {}
        for right, body in table.get("join", {}).items():
            left_on, right_on = keys_of(body)
            needs.keys |= set(left_on) - set(table.get("cols", {}))
            found[right].keys |= set(right_on)
            owner.update(dict.fromkeys(body["cols"], found[right]))
        for event in events_of(block).values():
            if strict := STRICT_TIME.fullmatch(str(event.get("time"))):
                owner.get(strict[1], needs).times[strict[1]] = strict[2]
            if plain := PLAIN.fullmatch(str(event.get("numeric_value"))):
                owner.get(plain[1], needs).numbers.add(plain[1])
    return found
