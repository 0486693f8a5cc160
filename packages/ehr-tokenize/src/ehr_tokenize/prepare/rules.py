"""Rules that rewrite events: compiled once from settings, run once per distinct code and text, never once per row."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ehr_core.config import nearest
from ehr_core.errors import ConfigError

from ehr_tokenize.prepare.code_systems import clean
from ehr_tokenize.prepare.settings import RuleConfig

Step = Callable[[str], list[str]]
FIELD = re.compile(r"\{([^{}]*)\}")
VALUE = "value"


@dataclass(frozen=True)
class Made:
    """An event that a rule makes of another one."""

    code: str
    number: float = math.nan
    keeps_value: bool = False
    """Whether it has the number of the event that it was made of."""


@dataclass(frozen=True)
class Field:
    """``{name|step|step?default}`` of a template."""

    name: str
    steps: tuple[Step, ...]
    default: str | None

    def values(self, fields: Mapping[str, str | None]) -> list[str]:
        """What the field is replaced by; nothing when it is unknown or a step finds nothing."""
        text = fields.get(self.name)
        found = [text] if text else []
        for step in self.steps:
            found = [after for before in found for after in step(before)]
        return [text for text in found if text] or ([self.default] if self.default is not None else [])


@dataclass(frozen=True)
class Template:
    """Text with fields."""

    texts: tuple[str, ...]
    """Around and between the fields: one more than there are fields."""
    fields: tuple[Field, ...]

    def fill(self, fields: Mapping[str, str | None]) -> list[str]:
        """The text with every combination of the values of its fields."""
        filled = []
        for values in itertools.product(*(field.values(fields) for field in self.fields)):
            woven = itertools.zip_longest(self.texts, values, fillvalue="")
            filled.append("".join(itertools.chain.from_iterable(woven)))
        return filled


class Rule:
    """One compiled `RuleConfig`. Raises ConfigError for a rule that cannot work."""

    def __init__(self, settings: RuleConfig, number: int, columns: list[str], steps: Mapping[str, Step]):
        self._where = f"rule {number} (for {', '.join(settings.codes) or 'no code'})"
        if not settings.codes:
            raise ConfigError(f"{self._where}: give the starts of the codes that it is for in codes")
        self.prefixes = tuple(settings.codes)
        self.numeric = settings.numeric
        self._normalize = settings.normalize
        self._pattern = self._regex(settings.pattern) if settings.pattern is not None else None
        self._conditions = {column: self._regex(text) for column, text in settings.where.items()}
        groups = {name for p in (self._pattern, *self._conditions.values()) if p for name in p.groupindex}
        self._known = {"code", *groups, *columns}
        self._outputs = [self._output(text, steps) for text in settings.to]
        used = {field.name for template, _ in self._outputs for field in template.fields}
        used |= {field.name for _, number in self._outputs if number for field in number.fields}
        for name in settings.where:
            if name not in columns:
                raise ConfigError(f"{self._where} has no field {name!r}; where takes columns.{nearest(name, columns)}")
        ranges = {name: limits(found, f"{self._where}: within.{name}") for name, found in settings.within.items()}
        self.range = ranges.pop(VALUE, None)
        """Between what the number of an event must be, if it matters."""
        self._within = [(self._field(inside, steps, False), span) for inside, span in ranges.items()]
        used |= {field.name for field, _ in self._within}
        # A group may have the name of a column, for which it stands then; a condition is on the column itself.
        self.columns = tuple(column for column in columns if column in (used - groups) | set(settings.where))
        """Columns that decide, besides the code, what the rule makes."""

    def _regex(self, text: str) -> re.Pattern[str]:
        try:
            return re.compile(text)
        except re.error as error:
            raise ConfigError(f"{self._where}: {text!r} is no regular expression: {error}") from error

    def _check(self, name: str, number_too: bool) -> None:
        if not (name in self._known or name.isdigit() or (number_too and name == VALUE)):
            allowed = {*self._known, *("0", "1"), *([VALUE] if number_too else [])}
            raise ConfigError(f"{self._where} has no field {name!r}; add a column to columns.{nearest(name, allowed)}")

    def _output(self, text: str, steps: Mapping[str, Step]) -> tuple[Template, Template | None]:
        code, equals, number = text.partition(" = ")
        return self._template(code, steps, False), self._template(number, steps, True) if equals else None

    def _template(self, text: str, steps: Mapping[str, Step], number: bool) -> Template:
        fields = tuple(self._field(inside, steps, number) for inside in FIELD.findall(text))
        around = tuple(FIELD.split(text)[::2])
        if any(brace in part for part in around for brace in "{}"):
            raise ConfigError(f"{self._where}: {text!r} has a {{ or }} without its pair; a field is written {{name}}")
        return Template(around, fields)

    def _field(self, inside: str, steps: Mapping[str, Step], number: bool) -> Field:
        chain, question, default = inside.partition("?")
        name, *names = chain.split("|")
        self._check(name, number)
        if wrong := [step for step in names if step not in steps]:
            raise ConfigError(f"{self._where}: there is no table {wrong[0]!r}.{nearest(wrong[0], steps)}")
        return Field(name, tuple(steps[step] for step in names), default if question else None)

    def matches(self, code: str) -> bool:
        """Whether the rule is for a code; more conditions may follow from numbers and columns."""
        return code.startswith(self.prefixes) and (self._pattern is None or self._pattern.fullmatch(code) is not None)

    def apply(self, code: str, columns: Mapping[str, str | None]) -> list[Made] | None:
        """What becomes of an event; None when the rule does not apply to it."""
        fields: dict[str, str | None] = {"code": code, **columns}
        fields.update((str(index), part) for index, part in enumerate(code.split("//")))
        if self._pattern is not None:
            found = self._pattern.fullmatch(code)
            assert found is not None, "call matches first"
            fields.update(found.groupdict())
        for column, pattern in self._conditions.items():
            text = columns[column]
            if text is None or (found := pattern.fullmatch(text)) is None:
                return None
            fields.update(found.groupdict())
        for field, (low, high) in self._within:
            if not any(low <= _number(text) <= high for text in field.values(fields)):
                return None
        made = [event for output in self._outputs for event in self._make(output, fields)]
        return made if made or not self._outputs else None

    def _make(self, output: tuple[Template, Template | None], fields: Mapping[str, str | None]) -> list[Made]:
        template, number = output
        names = [clean(name) if self._normalize else name for name in template.fill(fields)]
        if number is None:
            return [Made(name) for name in names if name]
        if [field.name for field in number.fields] == [VALUE]:
            return [Made(name, keeps_value=True) for name in names if name]
        found = [value for text in number.fill(fields) if math.isfinite(value := _number(text))]
        return [Made(name, found[0]) for name in names if name and found]


def _number(text: str | None) -> float:
    """The finite number that a text is; NaN for any other text."""
    try:
        found = float(text) if text else math.nan
    except ValueError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def limits(found: Any, where: str) -> tuple[float, float]:
    """The two numbers of a setting ``[low, high]``. Raises ConfigError, with the setting's place, for anything else."""
    numbers = (
        [x for x in found if isinstance(x, int | float) and not isinstance(x, bool)] if isinstance(found, list) else []
    )
    if len(numbers) != 2 or len(found) != 2 or not numbers[0] <= numbers[1]:
        raise ConfigError(f"{where} is {found}; expected [low, high]")
    return float(numbers[0]), float(numbers[1])
