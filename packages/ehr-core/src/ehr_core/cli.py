"""The command line: ``ehr`` itself and the frame of ``ehr-tokenize``, ``ehr-train`` and the others.

Starting up imports neither Hydra nor any component, so that ``ehr plugins`` answers at once.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from ehr_core.__about__ import __version__
from ehr_core.errors import ConfigError, EhrError
from ehr_core.plugins import KINDS, registry
from ehr_core.recipes import literal

USAGE = """\
usage: ehr COMMAND [key=value ...]

  ehr plugins [--json]     what is installed: plugins, components, and what failed to load
  ehr COMMAND --help       groups and settings of a command
  ehr --version

commands:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``ehr``."""
    return guarded("ehr", _ehr, list(sys.argv[1:] if argv is None else argv))


def _ehr(arguments: list[str]) -> int:
    commands = registry().components["command"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + _listed({name: component.summary for name, component in commands.items()}))
        return 0
    first, *rest = arguments
    if first in ("-V", "--version"):
        print(f"ehr-core {__version__}")
        return 0
    if first == "plugins":
        return show_plugins(rest)
    if first not in commands:
        raise ConfigError(f"no command is named {first!r}. Commands: plugins, {', '.join(sorted(commands))}.")
    return run(f"ehr {first}", first, rest)


def _listed(summaries: dict[str, str]) -> str:
    width = max(map(len, summaries), default=0)
    return "\n".join(f"  {name:<{width}}  {summary}" for name, summary in summaries.items())


def show_plugins(arguments: list[str]) -> int:
    """``ehr plugins [--json]``: exit status 1 when a plugin failed to load."""
    if arguments not in ([], ["--json"]):
        raise ConfigError(f"ehr plugins takes only --json, not {' '.join(arguments)}")
    found = registry()
    broken = any(plugin.error for plugin in found.plugins)
    kinds = [(kind, found.components[kind]) for kind in KINDS if found.components[kind]]
    if arguments:
        plugins = [dataclasses.asdict(plugin) for plugin in found.plugins]
        components = {
            kind: [
                {"name": c.name, "target": c.target, "summary": c.summary, "plugin": found.origin[kind, c.name].name}
                for c in parts.values()
            ]
            for kind, parts in kinds
        }
        print(json.dumps({"plugins": plugins, "components": components}, indent=2))
        return int(broken)
    for plugin in found.plugins:
        print(f"{plugin.name:<14} {plugin.distribution} {plugin.version}")
        if plugin.error:
            print(f"{'':<14} did not load: {plugin.error}. Fix or uninstall it, or leave it out with EHR_PLUGINS.")
    for kind, parts in kinds:
        print(f"\n{KINDS[kind].hook.removeprefix('ehr_')}")
        for component in parts.values():
            print(f"  {component.name:<22} {component.summary}")
    return int(broken)


def program(name: str, distribution: str, default: str, *others: str, **words: str) -> Callable[[], int]:
    """The entry point of a console script whose first word may choose one of several commands.

    ``others`` are commands that are called by their name; ``words`` gives a command another word in this script, so
    that two scripts may each have their own ``inspect``.
    """
    chosen = {command: command for command in (default, *others) if command} | words

    def entry() -> int:
        arguments = sys.argv[1:]
        asks_help = arguments[:1] in (["-h"], ["--help"])
        if arguments[:1] in (["-V"], ["--version"]):
            print(f"{distribution} {installed_version(distribution)}")
            return 0
        word = arguments.pop(0) if arguments[:1] and arguments[0] in chosen else ""
        command = chosen[word] if word else default
        if not command and asks_help:
            print(f"usage: {name} COMMAND [key=value ...]    ({name} COMMAND --help: its settings)\n\n{_words(chosen)}")
            return 0
        if not command:
            wrong = (
                f"{arguments[0]!r} is no command" if arguments and "=" not in arguments[0] else "a command is missing"
            )
            print(f"{name}: error: {wrong}. Commands: {', '.join(chosen)}.", file=sys.stderr)
            return 2
        status = guarded(name, lambda rest: run(f"{name} {word}".rstrip(), command, rest), arguments)
        if asks_help and len(chosen) > 1:
            print(f"\n{name} COMMAND [key=value ...] for others:\n{_words(chosen, but=default)}")
        return status

    return entry


def _words(chosen: dict[str, str], but: str = "") -> str:
    """The commands of a script that are installed, with what they do."""
    found = registry().components["command"]
    return _listed({w: found[command].summary for w, command in chosen.items() if command in found and command != but})


def run(name: str, command: str, arguments: list[str]) -> int:
    """Run one command with overrides: --help, --cfg, -m and key=value.

    Settings that the command's dataclass names in ``positional: ClassVar[tuple[str, ...]]`` may be given in that order
    without their names; such a command also takes ``--key value`` and ``--key=value`` for ``key=value``.
    """
    from ehr_core import config

    component = registry().get("command", command)
    positional: tuple[str, ...] = getattr(component.config, "positional", ())
    if {"-h", "--help"} & set(arguments):
        places = "".join(f"{place.upper()} " for place in positional)
        print(f"usage: {name} {places}[key=value ...]\n\n{component.summary}\n\n{config.describe(command)}")
        print("\n  --cfg            print the settings and stop\n  -m, --multirun   one run for each of a=1,2,3")
        return 0
    if positional:
        arguments = _named(arguments, positional, component.config)
    multirun = bool({"-m", "--multirun"} & set(arguments))
    overrides = [a for a in arguments if a not in ("-m", "--multirun", "--cfg")]
    flags = [a for a in overrides if a.startswith("-")]
    if flags:
        raise ConfigError(f"unknown option {flags[0]}; options are --help, --cfg, --multirun, then key=value")
    if multirun:
        return _multirun(name, command, overrides)
    composed = config.compose(command, overrides)
    if "--cfg" in arguments:
        print(config.as_yaml(composed), end="")
        return 0
    result = component.load()(config.to_settings(composed))
    return result if isinstance(result, int) else 0


def _named(arguments: list[str], positional: Sequence[str], settings: Any) -> list[str]:
    """The arguments as key=value, where a place or an option stands for a key. Raises ConfigError for one too many."""
    names = {field.name for field in dataclasses.fields(settings)}
    found, places, rest = [], list(positional), list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if argument.startswith("--") and key in names:
            if not equals and not rest:
                raise ConfigError(f"{argument} needs a value: {argument}=VALUE")
            found.append(f"{key}={literal(value if equals else rest.pop(0))}")
        elif "=" in argument or argument.startswith(("-", "~")):
            found.append(argument)
        elif places:
            found.append(f"{places.pop(0)}={literal(argument)}")
        else:
            raise ConfigError(f"{argument!r} is one too many; expected {' '.join(positional)}, then key=value")
    return found


def _multirun(name: str, command: str, overrides: list[str]) -> int:
    """One run per combination through Hydra's own sweeper and launcher; finished stages are shared among them.

    A run that fails says why in one line, and the others go on.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from ehr_core import config

    config.register()
    function = registry().load("command", command)
    overrides = config.with_recipe(command, overrides, sweep=True)
    runs = config.combinations(overrides)
    for combination in runs:
        config.composed(command, combination)
    same = set.intersection(*map(set, runs)) if runs else set()
    failed: list[int] = []

    def job(composed: Any) -> None:
        about = HydraConfig.get()
        chosen = " ".join(override for override in about.overrides.task if override not in same)
        print(f"run {about.job.num}: {chosen}", file=sys.stderr, flush=True)

        def one(_: list[str]) -> int:
            settings = config.to_settings(composed)
            folder = Path(about.runtime.output_dir)  # one for each run, below the output that was given
            names = {field.name for field in dataclasses.fields(settings)}
            if "stages" in names and settings.stages is None:
                settings.stages = folder.parent / "stages"
            if "output" in names:
                settings.output = folder
            result = function(settings)
            return result if isinstance(result, int) else 0

        if guarded(f"{name}: run {about.job.num}", one, []):
            failed.append(about.job.num)
        with contextlib.suppress(OSError):  # of a dry run nothing is left
            Path(about.runtime.output_dir).rmdir()

    given = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("output=")), None)
    place = f"hydra.sweep.dir={given or 'outputs/${now:%Y-%m-%d}/${now:%H-%M-%S}'}"
    quiet = ["hydra.output_subdir=null", "hydra/hydra_logging=none", "hydra/job_logging=none"]
    sys.argv = [name, "--multirun", *overrides, place, *quiet]
    hydra.main(version_base="1.3", config_path=None, config_name=config.config_name(command))(job)()
    return int(bool(failed))


def guarded(name: str, function: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run, and turn errors meant for users into one line on stderr. EHR_DEBUG=1 shows the traceback as well."""
    try:
        return function(arguments)
    except EhrError as error:
        if os.environ.get("EHR_DEBUG"):
            raise
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
