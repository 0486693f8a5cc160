"""Sessions. `nox -l` lists them; `nox -s tests` and `nox -s demo` need nothing but Python, pip and git.

What a session installs is read from the packages' own pyproject files: `requirements` follows the declared
dependencies, takes siblings from the tree, and leaves the rest to pip. No table of packages is kept here.

EHR_CONSTRAINTS=FILE     another constraints file than constraints.txt, for example constraints-cu12.txt
EHR_SYSTEM_TORCH=1       use the torch that is installed beside the Python that runs nox, and install none
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False  # also on CI: a Python that is not there is skipped

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / os.environ.get("EHR_CONSTRAINTS", "constraints.txt")
PYTHONS = ("3.11", "3.12", "3.13")
BUILD = ("hatchling", "editables")
CHECK = ("pytest", "pytest-xdist", "hypothesis")
# A test run uses all cores; neighbours in a file stay together, because they share fixtures.
CORES = ("-n", "logical", "--dist", "worksteal")
# The same module without its half gigabyte of libraries for several GPUs. It does not satisfy a dependency that is
# called xgboost, so the packages of the tree are installed with --no-deps, after what they need.
SUBSTITUTES = {"xgboost": "xgboost-cpu"}
# Nothing is looked up online, and workers do not fight for cores.
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Package:
    """One distribution of the tree, as its pyproject file says."""

    name: str
    folder: Path
    requires: tuple[Requirement, ...]
    tests: tuple[Requirement, ...]


def read_packages() -> dict[str, Package]:
    found = {}
    for path in sorted([*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]):
        data = tomllib.loads(path.read_text())
        project = data["project"]
        extra = [
            *project.get("optional-dependencies", {}).get("test", ()),
            *data.get("dependency-groups", {}).get("test", ()),
        ]
        requires = tuple(Requirement(text) for text in project.get("dependencies", ()))
        tests = tuple(Requirement(text) for text in extra)
        found[project["name"]] = Package(project["name"], path.parent, requires, tests)
    return found


PACKAGES = read_packages()


def requirements(names: list[str], tests: bool = False) -> tuple[list[Package], list[str]]:
    """Packages of the tree that these need, themselves included, and what all of those need from outside."""
    local: dict[str, Package] = {}
    outside: set[str] = set()
    queue = [Requirement(name) for name in names]
    queue += [requirement for name in names if tests for requirement in PACKAGES[name].tests]
    while queue:
        requirement = queue.pop()
        package = PACKAGES.get(requirement.name)
        if package is None:
            outside.add(
                str(requirement).replace(requirement.name, SUBSTITUTES.get(requirement.name, requirement.name), 1)
            )
        elif package.name not in local:
            local[package.name] = package
            queue += package.requires
    return sorted(local.values(), key=lambda package: package.name), sorted(outside)


def needs_torch(outside: list[str]) -> bool:
    return any(Requirement(text).name in ("torch", "transformers", "peft") for text in outside)


def constraints(session: nox.Session, outside: list[str]) -> Path:
    """The constraints file; for a torch that is there already, one that names its version, and a link to it."""
    for link in Path(session.virtualenv.location).glob("**/site-packages/system_torch.pth"):
        link.unlink()  # of an earlier session in this environment
    if not os.environ.get("EHR_SYSTEM_TORCH") or not needs_torch(outside):
        return CONSTRAINTS
    if importlib.util.find_spec("torch") is None:
        session.error(f"EHR_SYSTEM_TORCH is set, but {sys.executable}, which runs nox, has no torch")
    torch = importlib.metadata.distribution("torch")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = str(session.run("python", "-c", where, silent=True, log=False)).strip()
    # Such a folder comes after the session's own on sys.path: only what is missing there is taken from outside. The
    # scripts of what is found there are elsewhere, so sessions say `python -m pytest`, not `pytest`.
    Path(site, "system_torch.pth").write_text(f"{torch.locate_file('')}\n")
    path = Path(session.create_tmp()) / "constraints.txt"
    path.write_text(f"-c {ROOT / 'constraints-common.txt'}\ntorch=={torch.version}\n")
    return path


def install(session: nox.Session, names: list[str], *tools: str, tests: bool = False) -> None:
    """Install these packages from the tree, editable, with what they declare and the tools of the session."""
    local, outside = requirements(names, tests)
    session.install("-c", str(constraints(session, outside)), *BUILD, *tools, *outside)
    editable = [part for package in local for part in ("-e", str(package.folder))]
    session.install("--no-build-isolation", "--no-deps", *editable)


@nox.session
def tests(session: nox.Session) -> None:
    """Everything in one environment: quick tests of all packages and plugins, and of the whole."""
    install(session, list(PACKAGES), *CHECK, tests=True)
    arguments = session.posargs or ["-m", "not slow"]
    if not any(Path(argument.partition("::")[0]).exists() for argument in arguments):
        arguments = [*arguments, "packages", "plugins", "integration_tests"]
    session.run("python", "-m", "pytest", *CORES, *arguments, env=QUIET)


@nox.session
def demo(session: nox.Session) -> None:
    """The main job: a synthetic cohort from records to report. Arguments after -- go to ehr-train."""
    install(session, list(PACKAGES))
    session.run("ehr-train", *session.posargs)


CASES = [
    nox.param(python, name, id=name if python is None else f"{name}-{python}")
    for name in PACKAGES
    for python in (None, *(() if needs_torch(requirements([name])[1]) else PYTHONS))
]


@nox.session
@nox.parametrize("python,name", CASES)
def tests_package(session: nox.Session, name: str) -> None:
    """One package alone: only what it declares is installed, then its own tests."""
    install(session, [name], *CHECK, tests=True)
    heavy = needs_torch(requirements([name], tests=True)[1])
    substituted = SUBSTITUTES.keys() & {requirement.name for requirement in PACKAGES[name].requires}
    if not substituted and not (heavy and os.environ.get("EHR_SYSTEM_TORCH")):
        session.run("python", "-m", "pip", "check")
    if not heavy:
        absent = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') and 'torch is installed')"
        session.run("python", "-c", absent)
    tests_folder = (PACKAGES[name].folder / "tests").relative_to(ROOT)
    arguments = session.posargs or ["-m", "not slow"]
    session.run("python", "-m", "pytest", *CORES, str(tests_folder), *arguments, env=QUIET)


ETL_MIMIC_IV = ("mimic-iv-meds>=0.2", "meds-extract>=0.7.1", "polars<2")  # as the source says when it is missing


@nox.session
def etl_mimic_iv(session: nox.Session) -> None:
    """The source mimic_iv with the public MEDS ETL, which has an environment of its own inside the session's."""
    install(session, ["ehr-mimic-iv", "ehr-ethos"], *CHECK)
    etl = Path(session.virtualenv.location) / "etl"
    if not (etl / "bin" / "meds-extract-run").exists():
        session.run("python", "-m", "venv", "--clear", str(etl))
        session.run(str(etl / "bin" / "python"), "-m", "pip", "install", *ETL_MIMIC_IV, external=True)
    session.run(
        "python",
        "-m",
        "pytest",
        *(session.posargs or ["plugins/ehr-mimic-iv"]),
        env=QUIET | {"EHR_MIMIC_ETL": str(etl)},
    )


@nox.session(python="3.12")
def etl_omop(session: nox.Session) -> None:
    """Hold the source omop against the public OMOP_MEDS, which gets an environment of its own: its pins are others."""
    etl = Path(session.create_tmp()) / "etl"
    session.run("python", "-m", "venv", str(etl))
    session.run(str(etl / "bin" / "python"), "-m", "pip", "install", "-q", "omop-meds>=0.3,<0.4", external=True)
    install(session, ["ehr-omop"], *CHECK, tests=True)
    environment = QUIET | {"EHR_OMOP_ETL": str(etl)}
    session.run("python", "-m", "pytest", "plugins/ehr-omop/tests", *session.posargs, env=environment)


@nox.session
def lint(session: nox.Session) -> None:
    """Style of the code, and a changelog line for whatever is not released."""
    session.install("-c", str(CONSTRAINTS), "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    problems = [problem for package in PACKAGES.values() if (problem := changelog_problem(package))]
    if problems:
        session.error("; ".join(problems))


def changelog_problem(package: Package) -> str | None:
    """What is wrong with a package's changelog: this version is either described, or growing under Unreleased."""
    path = package.folder / "CHANGELOG.md"
    if not path.is_file():
        return f"{path.relative_to(ROOT)} is missing"
    about = next(package.folder.glob("src/*/__about__.py"))
    version = ast.literal_eval(about.read_text().split("__version__ =")[1].strip())
    sections = dict(re.findall(r"^## \[?([^\]\s]+)\]?[^\n]*\n(.*?)(?=^## |\Z)", path.read_text(), re.M | re.S))
    lines = sections.get(version, sections.get("Unreleased", ""))
    if not re.search(r"^- ", lines, re.M):
        return f"{path.relative_to(ROOT)} says nothing under '## Unreleased' or '## {version}'"
    return None


@nox.session
def types(session: nox.Session) -> None:
    """mypy over all packages at once: strict on ehr-core and on every plugin.py."""
    install(session, list(PACKAGES), "mypy")
    session.run(
        "python",
        "-m",
        "mypy",
        *(str((p.folder / "src").relative_to(ROOT)) for p in PACKAGES.values()),
        *session.posargs,
    )


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as a site in site/. `nox -s docs -- serve` shows it while you write."""
    session.install("-c", str(CONSTRAINTS), "mkdocs", "mkdocs-material", "mkdocstrings-python")
    command = session.posargs or ["build", "--strict"]
    session.run("mkdocs", *command, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def dev(session: nox.Session) -> None:
    """An environment to work in: everything editable, with the tools. Activate .nox/dev."""
    install(session, list(PACKAGES), *CHECK, "ruff", "mypy", "pre-commit", tests=True)
    session.log(f"activate it: . {Path(session.bin).relative_to(ROOT)}/activate")


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks given after --, for example `nox -s bench -- benchmarks/x.py`; without any, list them."""
    scripts = sorted((ROOT / "benchmarks").glob("*.py"))
    if not session.posargs:
        for script in scripts:
            first = (ast.get_docstring(ast.parse(script.read_text())) or "no description").splitlines()[0]
            session.log(f"{script.relative_to(ROOT)}: {first}")
        return
    install(session, list(PACKAGES))
    session.run("python", *session.posargs)
