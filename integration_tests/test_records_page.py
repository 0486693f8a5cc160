"""The page about real records: each of its rows names a test that is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "records.md").read_text()
ROWS = [
    line.strip("|").split("|")
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith(("| trouble", "|---"))
]


def names_in(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip()[:40])
def test_the_row_is_executed_by_a_test(row):
    assert len(row) == 4, "trouble, what is done, counted or said, test"
    named = re.findall(r"`([\w/.-]+)::(\w+)`", row[-1])
    assert named, "it names no test"
    for file, name in named:
        place = next((path for part in ("packages", "plugins", ".") if (path := ROOT / part / file).is_file()), None)
        assert place is not None, f"there is no {file}"
        assert name in names_in(place), f"{file} has no {name}"


def test_every_name_that_a_reader_counts_under_is_on_the_page():
    from ehr_core.formats.meds import TREATED
    from ehr_tokenize.store.treated import NAMES

    missing = [name for name in {**TREATED, **NAMES} if f"`{name}`" not in PAGE]
    assert not missing, f"the page has no row for {missing}"
