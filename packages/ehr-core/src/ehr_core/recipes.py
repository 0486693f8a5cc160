"""Recipes: YAML files of choices and settings, laid under what a command line says.

A recipe is a mapping like the settings that a command prints with ``--cfg``. A group takes the name of a choice, a list
of names, or a mapping with ``name`` and changed settings; everything else is a setting. ::

    title: Readmission on our wards
    source: {name: meds, path: data/meds}
    model: gpt2_tiny
    train: {name: tiny, max_steps: 500}
    predictors: {logistic: {}, xgboost: {max_depth: 3}}

What the command line says comes after it and wins. A recipe may name another with ``recipe``, which lies under it.
Paths are relative to the folder that a command runs in. Nothing in a recipe is resolved or executed.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ehr_core.errors import ConfigError, FormatError

FOLDER = "recipes"
"""Below the ``conf`` folder of a plugin package: recipes that have a name."""


@dataclass(frozen=True)
class Typed:
    """A number or a truth value of a recipe, with the text that stands there: a setting of text takes that."""

    value: Any
    text: str

    def __repr__(self) -> str:
        return self.text


class Override(str):
    """``key=value`` of a recipe, and the value as it ``typed`` it."""

    typed: str

    def __new__(cls, key: str, value: Any) -> "Override":
        """Of a key and a value of a recipe."""
        made = super().__new__(cls, f"{key}={literal(value)}")
        made.typed = literal(value, as_typed=True)
        return made


class Loader(yaml.SafeLoader):
    """As YAML has it, but that plain numbers and truth values are `Typed`, and all keys texts."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """One value."""
        found = super().construct_object(node, deep)
        plain = isinstance(node, yaml.ScalarNode) and not isinstance(found, str | None)
        return Typed(found, node.value) if plain else found

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """One mapping."""
        found = super().construct_mapping(node, deep)
        return {key.text if isinstance(key, Typed) else key: part for key, part in found.items()}


def expand(
    overrides: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    folders: Sequence[Path],
    many: Collection[str] = (),
) -> list[str]:
    """The overrides with ``recipe=NAME_OR_FILE`` replaced by what the recipe says, under the others.

    ``groups`` are the groups of settings, those of ``many`` take several names; ``folders`` are the ``conf`` folders. A
    group that the overrides choose loses the recipe's settings, except those of names that are chosen again among
    several. Raises ConfigError for a recipe that is not there, FormatError for one that cannot be read.
    """
    overrides = [part for override in overrides for part in _choice(override, groups)]
    named = [override for override in overrides if override.startswith("recipe=")]
    if not named or named[-1] == "recipe=null":
        return [override for override in overrides if override not in named]
    name = named[-1].partition("=")[2].strip("'\"")
    own = [override for override in overrides if override not in named]
    chosen = dict(override.lstrip("+").partition("=")[::2] for override in own)
    below = [
        override
        for override in _under(name, groups, folders, [])
        if _stays(override.partition("=")[0].split("."), chosen, groups, many)
    ]
    return [*below, f"+recipe={literal(name)}", *own]


def _stays(
    key: list[str], chosen: Mapping[str, str], groups: Mapping[str, Sequence[str]], many: Collection[str]
) -> bool:
    """Whether what a recipe says of a key still counts when the command line chooses these."""
    group = key[0]
    if group not in groups or group not in chosen:
        return True
    return group in many and len(key) > 1 and key[1] in re.split(r"[\[\],\s'\"]+", chosen[group])


def _under(
    name: str, groups: Mapping[str, Sequence[str]], folders: Sequence[Path], above: Sequence[Path]
) -> Iterator[str]:
    """Overrides of a recipe, and under them those of the one that it names itself."""
    path = find(name, folders)
    if path in above:
        raise ConfigError(f"the recipe {path} is laid under itself")
    found = dict(_read(path))
    base = found.pop("recipe", None)  # one that is called by a number is called by its text
    lower = list(_under(str(base), groups, folders, [*above, path])) if base else []
    own = list(_overrides(found, groups, path))
    replaced = {override.partition("=")[0] for override in own} & set(groups)
    yield from (override for override in lower if override.partition("=")[0].partition(".")[0] not in replaced)
    yield from own


def _choice(override: str, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """``adapter={name: lora, rank: 2}`` as ``adapter=lora`` and ``adapter.rank=2``; any other override as it is."""
    key, _, value = override.partition("=")
    if key not in groups or not value.startswith("{"):
        yield override
        return
    from hydra.core.override_parser.overrides_parser import OverridesParser  # a command that is listed needs no Hydra

    found = OverridesParser.create().parse_override(override).value()
    if not isinstance(found, dict) or "name" not in found:
        yield override
        return
    yield from _overrides({key: found}, groups)


def find(name: str, folders: Sequence[Path]) -> Path:
    """The file of a recipe: one that is named by its path, or one of a plugin's."""
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).expanduser().is_file():
            raise ConfigError(f"recipe={name} is not a file")
        return Path(name).expanduser()
    known = {path.stem: path for folder in folders for path in sorted((folder / FOLDER).glob("*.yaml"))}
    if name not in known:
        raise ConfigError(
            f"no recipe is named {name!r}. Installed: {', '.join(sorted(known)) or 'none'}; "
            "a recipe of your own is given by its path, which ends in .yaml"
        )
    return known[name]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, OSError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        words = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise FormatError(f"{path}{line} is not readable YAML: {words}") from error
    if not isinstance(found, dict | None) or not all(isinstance(key, str) for key in found or ()):
        raise FormatError(f"{path} is not a recipe; it must be a mapping of settings, as --cfg prints them")
    return found or {}


def _overrides(recipe: Mapping[str, Any], groups: Mapping[str, Sequence[str]], path: Any = "") -> Iterator[str]:
    for key, value in recipe.items():
        if key not in groups or value is None:
            yield from _settings(key, value)
        elif isinstance(value, str):
            yield f"{key}={value}"
        elif isinstance(value, list):
            yield f"{key}=[{','.join(map(str, value))}]"
        elif isinstance(value, Mapping) and ("name" in value or not set(value) <= set(groups[key])):
            rest = dict(value)
            if "name" in rest:
                yield f"{key}={rest.pop('name')}"
            yield from _settings(key, rest)
        elif isinstance(value, Mapping):
            yield f"{key}=[{','.join(value)}]"
            for name, settings in value.items():
                yield from _settings(f"{key}.{name}", settings or {})
        else:
            raise FormatError(f"{path} gives {key} as {value!r}; give a name, a list of names, or a mapping")


def _settings(key: str, value: Any) -> Iterator[str]:
    """Leaves as ``key.below=value``; a list, or a mapping whose keys are no words, is one value."""
    if isinstance(value, Mapping) and all(re.fullmatch(r"\w+", str(name)) for name in value):
        for name, part in value.items():
            yield from _settings(f"{key}.{name}", part)
    else:
        yield Override(key, value)


def literal(value: Any, as_typed: bool = False) -> str:
    """A value as the parser of overrides takes it, whatever signs a text has; what is `Typed` perhaps as its text."""
    if isinstance(value, Typed):
        return value.text if as_typed else literal(value.value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{literal_key(str(k))}:{literal(part, as_typed)}" for k, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(literal(part, as_typed) for part in value) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # Within quotes a backslash counts as one only before a quote or at the end.
    text = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), str(value))
    return f"'{text}'"


def literal_key(text: str) -> str:
    """The key of a mapping as the parser takes it, which knows no quotes there. Raises ConfigError for other signs."""
    if not re.fullmatch(r"[\w/\-\\+.$%*@?|()\[\]{}:=, \t]+", text, re.ASCII):
        raise ConfigError(
            f"the key {text!r} has signs that cannot be written; take letters, digits and / - + . $ % * @"
        )
    return re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", text)
