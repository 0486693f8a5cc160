"""Settings: dataclasses of components and commands, composed by Hydra from a command line.

Every component's dataclass is an option of its kind's group; a plugin package that has a ``conf/`` folder next to its
plugin module adds presets (YAML) to any group. Settings name components, never code: there is no ``_target_`` here and
nothing is instantiated from a config, so a run folder's config cannot make anything execute.
"""

import contextlib
import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ehr_core import recipes
from ehr_core.config.descriptions import columns, described
from ehr_core.config.sources import conf_folders, config_name, places, register
from ehr_core.config.texts import escaped, texts_kept
from ehr_core.errors import ConfigError
from ehr_core.plugins import KINDS, registry

MANY = frozenset(place.group for place in KINDS.values() if place.many)
"""Groups of which several may be chosen."""
__all__ = ["component_settings", "compose", "config_name", "describe", "options", "preset", "register", "to_settings"]


def options() -> dict[str, list[str]]:
    """Names that may be chosen in each group: components, and presets from ``conf/`` folders."""
    groups: dict[str, set[str]] = {}
    for place in places():
        group, _, name = place.rpartition("/")
        if group:
            groups.setdefault(group, set()).add(name)
    for folder in conf_folders():
        for path in folder.rglob("*.yaml"):
            group = path.relative_to(folder).parent.as_posix()
            if group not in (".", recipes.FOLDER):
                groups.setdefault(group, set()).add(path.stem)
    return {group: sorted(names) for group, names in groups.items()}


def compose(command: str, overrides: Sequence[str]) -> DictConfig:
    """The composed config of a command. Raises ConfigError with one line for whatever is wrong with the overrides."""
    return composed(command, with_recipe(command, overrides))


def composed(command: str, overrides: Sequence[str]) -> DictConfig:
    """As `compose`, of overrides that `with_recipe` gave."""
    overrides = list(overrides)
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(f"{override!r} is not a setting; write key=value, for example seed=7 (see --help)")
        try:
            OverridesParser.create().parse_override(override)
        except HydraException as error:
            raise ConfigError(
                f"{override} cannot be read; quote a value with special signs: key=\"'value'\""
            ) from error
    try:
        return _compose(config_name(command), overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        free = _free(command, overrides)
        if free != overrides:
            return composed(command, free)
        raise ConfigError(_explain(command, overrides, error)) from error


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """What Hydra's sweeper makes of overrides like ``seed=1,2``: those of each run. None with another sweeper."""
    if any(override.startswith(("hydra/sweeper=", "hydra.sweeper.")) for override in overrides):
        return []
    own = [override for override in overrides if not override.startswith("hydra")]
    try:
        parsed = OverridesParser.create().parse_overrides(own)
        return [list(one) for batch in BasicSweeper.split_arguments(parsed, None) for one in batch]
    except HydraException as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; write one run for each of a=1,2,3") from error


def with_recipe(command: str, overrides: Sequence[str], sweep: bool = False) -> list[str]:
    """The overrides with those of a recipe under them, where the command has a setting ``recipe``; none with null.

    Settings of text keep what was typed; with ``sweep`` a comma parts the values of several runs.
    """
    settings = registry().get("command", command).config
    if settings is not None and "recipe" in {field.name for field in dataclasses.fields(settings)}:
        overrides = recipes.expand(overrides, options(), conf_folders(), MANY)
    return texts_kept(command, [_nothing(override) for override in overrides], sweep)


def _nothing(override: str) -> str:
    """``group=null`` as Hydra says it."""
    group, _, value = override.partition("=")
    if value != "null" or group not in options():
        return override
    return f"{group}=[]" if group in MANY else f"~{group}"


def preset(group: str, name: str, *overrides: str) -> Any:
    """Settings of a component or a preset by its name, as its dataclass: ``preset("model", "gpt2_tiny")``."""
    try:
        return OmegaConf.to_object(_compose(None, [f"+{group}={name}", *overrides])[group])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{group}={name}: {str(error).splitlines()[0]}") from error


def _compose(config: str | None, overrides: list[str]) -> DictConfig:
    register()
    GlobalHydra.instance().clear()
    with initialize(version_base="1.3", config_path=None):
        return hydra_compose(config_name=config, overrides=overrides)


def _chosen(command: str, overrides: list[str]) -> DictConfig | None:
    """The config with the groups that the overrides choose and no other change; None where they cannot be chosen."""
    chosen = [o for o in overrides if o.lstrip("+~").partition("=")[0] in options()]
    with contextlib.suppress(HydraException, OmegaConfBaseException, ValueError):
        return _compose(config_name(command), chosen)
    return None


def _free(command: str, overrides: list[str]) -> list[str]:
    """The overrides, as ``++KEY={...}`` where they reach into a dictionary whose keys are the user's own to name."""
    config = _chosen(command, overrides)
    return [_freed(config, override) for override in overrides] if config is not None else overrides


def _freed(config: DictConfig, override: str) -> str:
    key, _, value = override.partition("=")
    parts = key.split(".")
    place = _dictionary(config, parts)
    if not place or key[0] in "+~":
        return override
    for name in reversed(parts[place:]):
        value = f"{{{recipes.literal_key(name)}: {value}}}"
    return f"++{'.'.join(parts[:place])}={value}"


def _dictionary(node: Any, parts: list[str]) -> int:
    """How many parts of a key lead to a field like ``dict[str, float]`` that is no group of components; 0 for none."""
    for place, part in enumerate(parts, 1):
        if not isinstance(node, DictConfig) or not dataclasses.is_dataclass(kind := OmegaConf.get_type(node)):
            return 0
        hint = typing.get_type_hints(kind).get(part)
        if typing.get_origin(hint) is dict:
            return 0 if part in options() else place
        node = node.get(part) if hint is not None and not OmegaConf.is_missing(node, part) else None
    return 0


def _explain(command: str, overrides: list[str], error: BaseException) -> str:
    """One line for a composition error, with what is allowed and the nearest name."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = key.partition("@")[0]
        if group in options() and "." not in group:
            allowed = options()[group]
            wrong = [name for name in re.split(r"[\[\],\s]+", value.strip("'\"")) if name and name not in allowed]
            if wrong and value != "null":
                return f"{key}={value}: no {group} is named {wrong[0]!r}.{nearest(wrong[0], allowed)}"
    with_chosen = _chosen(command, overrides)
    if with_chosen is not None:
        for override in overrides:
            key = override.lstrip("+~").partition("=")[0]
            message = None if key in options() or override.startswith("++") else unknown_key(with_chosen, key)
            if message:
                return message
    causes = [error, error.__cause__, error.__context__]
    texts = [str(cause).strip().splitlines() for cause in causes if cause is not None and str(cause).strip()]
    detail = texts[-1] if texts else [type(error).__name__]
    where = next((line.strip().removeprefix("full_key: ") for line in detail if "full_key" in line), "")
    if "is not a ListConfig" in detail[0] and where:
        value = next((o.partition("=")[2] for o in overrides if o.lstrip("+~").partition("=")[0] == where), "A,B")
        return f"{where} is a list; write {where}=[{value}]"
    if not where:
        where = next((o.partition("=")[0] for o in overrides if o in str(error)), "")
    return f"{where}: {detail[0]}" if where and where not in detail[0] else detail[0]


def unknown_key(config: DictConfig, key: str) -> str | None:
    """One line about the first part of a dotted key that the config does not have, or None."""
    node: Any = config
    walked: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return f"there is no setting {key!r}: {'.'.join(walked)} is a single value"
        if part not in node.keys():  # noqa: SIM118 (a value that is missing is not `in` a DictConfig)
            allowed = sorted(str(name) for name in node)
            place = ".".join(walked) or "the top level"
            return f"there is no setting {key!r}: {place} has no {part!r}.{nearest(part, allowed)}"
        walked.append(part)
        node = None if OmegaConf.is_missing(node, part) else node[part]
    return None


def nearest(wrong: str, allowed: Iterable[str]) -> str:
    """`` Did you mean x? Allowed: ...`` for an error message."""
    names = sorted(allowed)
    near = difflib.get_close_matches(wrong, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{hint} Allowed: {', '.join(names) or 'nothing'}."


def to_settings(config: DictConfig) -> Any:
    """The composed config as the command's dataclass. Raises ConfigError for a required setting without a value."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{missing[0]} is required: give {missing[0]}=...")
    try:
        settings: Any = OmegaConf.to_object(config)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    for name, value in _numbers(to_plain(settings), ""):
        if not math.isfinite(value):
            raise ConfigError(f"{name} is {value}; it must be a finite number")
    for group in MANY & set(vars(settings)):
        if getattr(settings, group) is None:  # of several optional ones: none was chosen
            continue
        parts = {name: part for name, part in getattr(settings, group).items() if part is not None}
        for name, part in parts.items():
            if not dataclasses.is_dataclass(part):
                raise ConfigError(f"{group}.{name} is not chosen; choose it with {group}=[{','.join(parts)}]")
        setattr(settings, group, parts)
    return settings


def _numbers(plain: Any, name: str) -> Iterator[tuple[str, float]]:
    """Name and value of every float among settings."""
    if isinstance(plain, float):
        yield name, plain
    parts = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list | tuple) else ()
    for key, part in parts:
        yield from _numbers(part, f"{name}.{key}" if name else str(key))


def to_plain(settings: Any) -> Any:
    """Settings as JSON values: what goes into manifests and cache keys."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        fields = dataclasses.fields(settings)
        return {f.name: to_plain(getattr(settings, f.name)) for f in fields if f.name != "defaults"}
    if isinstance(settings, dict):
        return {str(key): to_plain(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [to_plain(value) for value in settings]
    return str(settings) if isinstance(settings, Path) else settings


def as_yaml(config: DictConfig) -> str:
    """The composed config as YAML, paths as text; what is missing stays ``???``."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(OmegaConf.to_container(config, resolve=True))))


def from_plain(kind: str, found: dict[str, Any]) -> Any:
    """Settings of a component from JSON values (a manifest's); unknown keys raise ConfigError."""
    config = registry().get(kind, found["name"]).config
    assert config is not None, f"{kind} {found['name']} has no settings"
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), escaped(found)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"settings of {kind} {found['name']!r}: {str(error).splitlines()[0]}") from error


def component_settings(kind: str, value: Any) -> Any:
    """Settings of a component from what a setting may say: its name or a preset's, a mapping with ``name``, settings.

    A mapping changes some settings of what it names: ``{name: survival, num_bins: 4}``. Raises ConfigError with the
    allowed names.
    """
    group, components = KINDS[kind].group, registry().components[kind]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if getattr(value, "name", None) in components:
            return value
        raise ConfigError(f"{type(value).__name__} are not the settings of a {kind}.{nearest('', components)}")
    changes = {str(key): part for key, part in value.items()} if isinstance(value, Mapping) else {"name": value}
    name = changes.pop("name", None)
    allowed = {*components, *(options().get(group, ()) if group else ())}
    if not isinstance(name, str) or name not in allowed:
        said = "it names none" if name is None else f"no {kind} is named {name!r}"
        raise ConfigError(f"{kind}={value}: {said}.{nearest(str(name), allowed)}")
    config = components[name].config if name in components else None
    found = config() if config is not None else preset(group, name)
    unknown = sorted(changes.keys() - {field.name for field in dataclasses.fields(found)})
    if unknown:
        known = (field.name for field in dataclasses.fields(found))
        raise ConfigError(f"{kind} {name} has no setting {unknown[0]!r}.{nearest(unknown[0], known)}")
    return from_plain(kind, {**to_plain(found), **changes})


def describe(command: str) -> str:
    """The help text of a command: groups with their options, every setting with its default, and what they mean."""
    config = compose(command, [])
    lines = ["Groups (choose with group=name, several with group=[a,b]):"]
    for group, names in sorted(options().items()):
        if group in config:
            lines.append(f"  {group:<11} {', '.join(names)}")
    lines += ["", "Settings and defaults (override with key=value; ??? must be given):"]
    lines += [f"  {line}" for line in as_yaml(config).rstrip().splitlines()]
    settings = registry().get("command", command).config
    if settings is not None and (texts := described(settings)):
        lines += ["", "What they mean:", *columns(texts)]
    return "\n".join(lines)
