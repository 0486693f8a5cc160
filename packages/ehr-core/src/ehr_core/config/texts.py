"""Settings of text (``str`` and ``Path``) keep what was typed, whatever it looks like.

Hydra reads ``output=2024`` as a number, ``title=a,b`` as two and ``path=a=b`` not at all. Here the type of a setting
says what its value is: that of a text is taken as it stands and handed to Hydra in quotes. ``null`` still means none
where none is allowed, and what was typed in quotes is the text within. In lists and mappings of texts each part is one.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ehr_core import plugins
from ehr_core.errors import ConfigError
from ehr_core.plugins import KINDS
from ehr_core.recipes import literal

FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)
"""What Hydra's sweeper makes several values of."""
QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)


def texts_kept(command: str, overrides: Sequence[str], sweep: bool = False) -> list[str]:
    """The overrides with those of text settings quoted; with ``sweep`` a comma parts the values of several runs.

    Raises ConfigError for a path that is empty.
    """
    return [_kept(override, setting_type(command, overrides, _key(override)), sweep) for override in overrides]


def escaped(value: Any) -> Any:
    """Plain values whose texts OmegaConf takes as they stand: ``${x}`` is no reference in them."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
    if isinstance(value, dict):
        return {key: escaped(part) for key, part in value.items()}
    return [escaped(part) for part in value] if isinstance(value, list) else value


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


# -- the type of a setting


def setting_type(command: str, overrides: Sequence[str], key: str) -> Any:
    """The annotation of a setting, by the components that the overrides choose; None where it is not known."""
    settings = plugins.registry().get("command", command).config
    if settings is None:
        return None
    group, *below = key.split(".")
    kinds = [kind for kind, place in KINDS.items() if place.group == group]
    if not below or not kinds:
        return _walk(settings, [group, *below])
    name = below.pop(0) if KINDS[kinds[0]].many else _choice(settings, overrides, group)
    components = {name: part for kind in kinds for name, part in plugins.registry().components[kind].items()}
    chosen = [components[name]] if name in components else components.values()  # of a preset: any of its kind
    found = {hint for part in chosen if part.config is not None and (hint := _walk(part.config, below)) is not None}
    return found.pop() if len(found) == 1 else None


def _choice(settings: type, overrides: Sequence[str], group: str) -> str:
    """The name that is chosen in a group: the last one given, else the usual one."""
    defaults = getattr(settings(), "defaults", [])
    names = [part[group] for part in defaults if isinstance(part, dict) and group in part]
    names += [override.partition("=")[2] for override in overrides if _key(override) == group]
    return str(names[-1]) if names else ""


def _walk(kind: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        kind, _ = _required(kind)
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(part)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            return None
    return kind


def _required(kind: Any) -> tuple[Any, bool]:
    """A type without None, and whether it had it."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, False
    others = [part for part in typing.get_args(kind) if part is not type(None)]
    return (others[0] if len(others) == 1 else kind), len(others) < len(typing.get_args(kind))


# -- its value


def _kept(override: str, kind: Any, sweep: bool) -> str:
    name, equals, value = override.partition("=")
    if not equals or kind is None or name.startswith("~"):
        return override
    value = getattr(override, "typed", value)  # of a recipe: as it stands there
    parts = [value]
    if sweep and not (value.startswith("[") or QUOTED.fullmatch(value)):
        parts = list(_divided(value)) if not FUNCTION.fullmatch(value) else []
    kept = [_text(part, kind, _key(override)) for part in parts]
    return override if not kept or None in kept else f"{name}={','.join(map(str, kept))}"


def _text(value: str, kind: Any, key: str) -> str | None:
    """A value in quotes where its type is text, or made of texts; None where Hydra is to read it."""
    kind, optional = _required(kind)
    if kind in (str, Path):
        if optional and value == "null":
            return value
        match = QUOTED.fullmatch(value)
        text = _unquoted(match) if match else value
        if kind is Path and not text.strip():
            raise ConfigError(f"{key} is empty; give a path")
        return literal(escaped(text))
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is list and inner and value.startswith("[") and value.endswith("]"):
        parts = [_text(part, inner[0], key) for part in _divided(value[1:-1])]
        return None if None in parts else f"[{','.join(map(str, parts))}]"
    if typing.get_origin(kind) is dict and inner and value.startswith("{") and value.endswith("}"):
        return _mapping(value[1:-1], inner[1], key)
    return None


def _mapping(value: str, kind: Any, key: str) -> str | None:
    found = []
    for part in _divided(value):
        name, colon, rest = (words.strip() for words in part.partition(":"))
        text = _text(rest, kind, key)
        if not colon or text is None:
            return None
        found.append(f"{name}:{text}")
    return f"{{{','.join(found)}}}"


def _unquoted(match: re.Match[str]) -> str:
    """The text within quotes; a backslash counts as one only before a quote or at the end, as for Hydra."""
    single, double = match.groups()
    quote, text = ("'", single) if single is not None else ('"', double)
    undo: Callable[[re.Match[str]], str] = lambda found: found[1][: len(found[1]) // 2] + found[2]  # noqa: E731
    return re.sub(rf"(\\+)({quote}|\Z)", undo, text)


def _divided(value: str) -> Iterator[str]:
    """The parts between commas that are within no quotes and no brackets, without blanks around them."""
    depth, quote, start = 0, "", 0
    for place, sign in enumerate(value):
        if quote:
            before = value[start:place]
            escape = (len(before) - len(before.rstrip("\\"))) % 2
            quote = "" if sign == quote and not escape else quote
        elif sign in "'\"" and not value[start:place].strip():
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth == 0:
            yield value[start:place].strip()
            start = place + 1
    if value[start:].strip() or start:
        yield value[start:].strip()
