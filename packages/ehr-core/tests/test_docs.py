"""The page of hooks says what hookspecs.py says, and every plugin on it works."""

import contextlib
import dataclasses
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest
from ehr_core import hookspecs
from ehr_core.errors import NotApplicable
from ehr_core.formats.folder import Manifest
from ehr_core.formats.label_values import TYPES
from ehr_core.formats.tokens import FIXED, Prefix
from ehr_core.formats.vocabulary import Token
from ehr_core.outcomes import COLUMNS
from ehr_core.plugins import KINDS, discover
from ehr_core.testing import kit, tiny

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "hooks.md"
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "ehr_spec")]
INSTALLED_CHECK = kit.check_import_is_light  # looks a component up among the installed ones
NEEDS = {"source": "polars", "objective": "transformers", "adapter": "transformers", "strategy": "ehr_train"}
"""What the checks of a kind import, beyond what the plugin itself does."""
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the docs folder is not beside the packages")


def sections(page):
    """Heading to text, for headings of the second level."""
    parts = re.split(r"^## (.+)\n", page.read_text(), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def write_modules(text, folder):
    """Write the code blocks that have a file name; returns the names of the modules."""
    names = []
    for name, code in re.findall(r'^```python title="(\w+)\.py"\n(.*?)^```', text, re.M | re.S):
        (folder / f"{name}.py").write_text(code)
        names.append(name)
    return names


@contextlib.contextmanager
def importable(names, folder):
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)


def test_every_hook_has_a_heading_with_its_signature_in_the_same_order():
    expected = [f"{name}{inspect.signature(getattr(hookspecs, name))}" for name in HOOKS]
    expected = [re.sub(r"-> .*", "-> Components", line) for line in expected]
    assert list(sections(PAGE)) == expected


def test_every_section_begins_with_what_the_hook_says_of_itself():
    for name, text in zip(HOOKS, sections(PAGE).values(), strict=True):
        said = " ".join(inspect.getdoc(getattr(hookspecs, name)).split())
        assert said in " ".join(text.split()), f"{name}: the page does not say {said!r}"


def test_every_section_names_the_group_of_settings():
    for heading, text in sections(PAGE).items():
        kind = next(place for place in KINDS.values() if heading.startswith(place.hook))
        assert not kind.group or f"Group `{kind.group}`" in text, heading


def test_the_page_of_formats_names_every_field():
    text = (DOCS / "formats.md").read_text()
    names = [field.name for field in dataclasses.fields(Manifest)]
    names += [*FIXED, *(field.name for field in dataclasses.fields(Prefix))]
    names += ["id", *(field.name for field in dataclasses.fields(Token))]
    names += [*TYPES, *(columns.prediction for columns in COLUMNS.values())]
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_plugin_of_every_section_works(kind, tmp_path):
    text = next(text for heading, text in sections(PAGE).items() if heading.startswith(KINDS[kind].hook))
    (tmp_path / "code").mkdir()
    names = write_modules(text, tmp_path / "code")
    assert names[0] == "my_plugin"
    for library in ("torch", "transformers", "polars"):
        if re.search(rf"^(import|from) {library}", text, re.M):
            pytest.importorskip(library)
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    with importable(names, tmp_path / "code"):
        found = discover({"mine": importlib.import_module("my_plugin")})
        (component,) = found.components[kind].values()
        special = {"command": try_command}
        plain = [check for check in kit.checks_of(kind) if check is not INSTALLED_CHECK]
        for number, check in enumerate([special[kind]] if kind in special else plain):
            scratch = tmp_path / str(number)
            scratch.mkdir()
            with contextlib.suppress(NotApplicable):  # what a part declares that it cannot do
                check(kind, component, scratch)


def try_command(kind, component, folder):
    meds = tiny.write_tiny_meds(folder / "meds")
    assert component.load()(component.config(path=str(meds))) == 0
