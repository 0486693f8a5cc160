"""pytest plugin of the conformance kit. A plugin package needs one test:

    def test_conformance(ehr_check):
        ehr_check()

It becomes one test per component of the package under test and check of that component's kind.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def _distribution(start: Path) -> str:
    for folder in [start, *start.parents]:
        file = folder / "pyproject.toml"
        if file.is_file():
            name = tomllib.loads(file.read_text()).get("project", {}).get("name")
            if name:
                return str(name)
    raise pytest.UsageError(f"no pyproject.toml with a project name above {start}; whose plugins should be checked?")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Turn a test that asks for ``ehr_check`` into one per component and check."""
    if "ehr_check" not in metafunc.fixturenames:
        return
    from ehr_core.plugins import registry
    from ehr_core.testing.kit import checks_of

    name = _distribution(Path(str(metafunc.module.__file__)).parent)
    found = registry()
    plugins = [plugin for plugin in found.plugins if plugin.distribution == name]
    if not plugins:
        raise pytest.UsageError(f"{name} has no plugin in the entry-point group 'ehr'; is it installed?")
    broken = [plugin for plugin in plugins if plugin.error]
    if broken:
        raise pytest.UsageError(f"plugin {broken[0].name!r} did not load: {broken[0].error}")
    cases: list[Any] = []
    for kind, components in found.components.items():
        for component in components.values():
            if found.origin[kind, component.name] in plugins:
                for check in checks_of(kind):
                    label = f"{kind}-{component.name}-{check.__name__.removeprefix('check_')}"
                    cases.append(pytest.param((check, kind, component), id=label))
    metafunc.parametrize("ehr_check", cases, indirect=True)


@pytest.fixture
def ehr_check(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], None]:
    """The check of this test case; call it."""
    from ehr_core.errors import NotApplicable

    check, kind, component = request.param

    def call() -> None:
        try:
            check(kind, component, tmp_path)
        except NotApplicable as reason:
            pytest.skip(str(reason))

    return call


@pytest.fixture(scope="session")
def tiny_meds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid MEDS dataset of 24 subjects; do not change it."""
    from ehr_core.testing.tiny import write_tiny_meds

    return write_tiny_meds(tmp_path_factory.mktemp("tiny") / "meds")
