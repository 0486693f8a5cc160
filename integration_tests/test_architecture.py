"""Rules of the house, read off the sources: who may import whom, and what may not be written anywhere."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ehr_core.testing.kit import HEAVY

ROOT = Path(__file__).parents[1]
PROJECTS = sorted([*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")])
NAMES = [path.parent.name for path in PROJECTS]
SOURCES = {
    path.parent.name: sorted(path.parent.glob("src/**/*.py")) for path in PROJECTS if (path.parent / "src").is_dir()
}
CORE = ("ehr", "ehr_core")
REST = [ROOT / "noxfile.py", *sorted((ROOT / "benchmarks").glob("**/*.py"))]


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(project: Path) -> set[str]:
    """Distributions that a package declares, extras included."""
    data = tomllib.loads(project.read_text())["project"]
    extras = [text for texts in data.get("optional-dependencies", {}).values() for text in texts]
    return {canonical(re.match(r"[\w.-]+", text)[0]) for text in [*data.get("dependencies", []), *extras]}


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Root names of what a module imports anywhere, with lines; what only type checkers read is left out."""
    if is_for_type_checkers(node):
        return
    if isinstance(node, ast.Import):
        yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        yield str(node.module).partition(".")[0], node.lineno
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


def distributions() -> dict[str, set[str]]:
    """Import name to the distributions that provide it here; xgboost-cpu provides what is declared as xgboost."""
    found = {name: {canonical(d) for d in dists} for name, dists in importlib.metadata.packages_distributions().items()}
    found.setdefault("xgboost", set()).add("xgboost")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_package_imports_itself_the_core_and_what_it_declares(name):
    project = next(path for path in PROJECTS if path.parent.name == name)
    own = {folder.name for folder in (project.parent / "src").iterdir()}
    siblings = {folder.name for path in PROJECTS for folder in path.parent.glob("src/*")} - own
    provides, allowed = distributions(), declared(project)
    may_import_packages = project.parent.parent.name == "plugins"
    wrong = []
    for file in SOURCES[name]:
        if "ehr_core/testing" in file.as_posix():
            continue  # runs in the tests of other packages, with what those have
        for root, line in imports(parsed(file)):
            where = f"{file.relative_to(ROOT)}:{line} imports {root}"
            if root in sys.stdlib_module_names or root in own:
                continue
            if root in siblings:
                if canonical("ehr_core" if root in CORE else root) not in allowed:
                    wrong.append(f"{where}, which {name} does not declare")
                elif root not in CORE and not may_import_packages and "ehr_train/runner/" not in file.as_posix():
                    wrong.append(f"{where}: a sibling is reached through folders and the registry, not by import")
            elif not provides.get(root, {canonical(root)}) & allowed:
                wrong.append(f"{where}, which {name} does not declare")
    assert not wrong, "\n".join(wrong)


def modules(files: list[Path]) -> dict[str, Path]:
    """Dotted name to file, for the files below one ``src``."""
    found = {}
    for file in files:
        parts = file.with_suffix("").parts
        parts = parts[len(parts) - 1 - parts[::-1].index("src") + 1 :]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def dependencies(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules among ``known`` that a module imports anywhere, also within functions."""
    wanted: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            within = {f"{node.module}.{alias.name}" for alias in node.names} & known
            wanted |= within or {node.module}
    hidden = {id(part) for node in ast.walk(tree) if is_for_type_checkers(node) for part in ast.walk(node)}
    if hidden:
        visible = ast.Module([node for node in tree.body if not is_for_type_checkers(node)], [])
        return dependencies(visible, known)
    return wanted & known


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first of them at the end again; empty where there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


@pytest.mark.parametrize("name", SOURCES)
def test_no_modules_of_a_package_import_each_other_in_a_circle(name):
    found = modules(SOURCES[name])
    graph = {module: dependencies(parsed(file), set(found)) - {module} for module, file in found.items()}
    assert " imports ".join(circle(graph)) == ""


def test_a_circle_of_imports_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def docstrings(tree: ast.Module) -> set[int]:
    """Ids of constants that stand alone: docstrings and the notes under settings."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def keywords(node: ast.Call) -> dict[str | None, object]:
    return {k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in node.keywords}


def dangers(tree: ast.Module) -> Iterator[str]:
    """What could make a file from elsewhere execute code."""
    prose = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            if "_target_" in node.value:
                yield f"{node.lineno}: _target_ in a setting"
        elif isinstance(node, ast.ImportFrom) and node.module == "hydra.utils":
            yield f"{node.lineno}: hydra.utils can instantiate whatever a config names"
        elif isinstance(node, ast.Call):
            called, named = ast.unparse(node.func), keywords(node)
            if called in ("eval", "exec", "hydra.utils.instantiate"):
                yield f"{node.lineno}: {called}()"
            if called == "torch.load" and named.get("weights_only") is not True:
                yield f"{node.lineno}: torch.load without weights_only=True"
            if named.get("weights_only") is False or named.get("allow_pickle") is True:
                yield f"{node.lineno}: a file is opened in a way that can execute code"
            if named.get("trust_remote_code") not in (None, False):
                yield f"{node.lineno}: trust_remote_code"
    for root, line in imports(tree):
        if root in ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"):
            yield f"{line}: {root} executes what it reads"


@pytest.mark.parametrize("name", [*SOURCES, "the rest"])
def test_nothing_that_is_read_can_execute_code(name):
    files = SOURCES.get(name, REST)
    found = [f"{file.relative_to(ROOT)}:{danger}" for file in files for danger in dangers(parsed(file))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "eval('1')",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "x = {'_target_': 'os.system'}",
    ],
)
def test_the_search_for_dangers_finds_them(text):
    assert list(dangers(ast.parse(text)))


def test_listing_plugins_imports_nothing_heavy():
    code = (
        "import json, sys; from ehr_core.plugins import registry; "
        "loaded = [p.name for p in registry().plugins if not p.error]; "
        f"print(json.dumps([loaded, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    installed = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "EHR_PLUGINS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=installed)
    loaded, heavy = json.loads(done.stdout)
    assert heavy == []
    assert len(loaded) >= len(SOURCES), f"only {loaded} loaded, of {', '.join(SOURCES)}"


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_the_same_papers(name):
    folder = next(path.parent for path in PROJECTS if path.parent.name == name)
    data = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert data["license"] == "Apache-2.0"
    assert data["requires-python"] == ">=3.11"
    assert data["dynamic"] == ["version"]
    assert list(data["entry-points"]["ehr"].values()) == [f"{canonical(name).replace('-', '_')}.plugin"]
    for paper in ("README.md", "CHANGELOG.md", "tests/test_conformance.py"):
        assert (folder / paper).is_file(), f"{name} lacks {paper}"
