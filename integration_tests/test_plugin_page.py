"""The tutorial's plugin, built from the page as a reader would: installed, found, and through its own tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "write-a-plugin.md"


def run(command, folder, site):
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The package's folder, and where it is installed."""
    pytest.importorskip("hatchling", reason="building a package needs hatchling")
    folder, site = tmp_path_factory.mktemp("ehr-neighbours"), tmp_path_factory.mktemp("site")
    for name, code in re.findall(r'^```\w+ title="([\w/.-]+)"\n(.*?)^```', PAGE.read_text(), re.M | re.S):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    (folder / "src/ehr_neighbours/__init__.py").touch()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run([*pip, "--target", str(site), str(folder)], folder, site)
    return folder, site


def test_the_plugin_is_found(built):
    folder, site = built
    listed = run([sys.executable, "-c", "from ehr_core.cli import main; main(['plugins'])"], folder, site)
    assert re.search(r"^neighbours +ehr-neighbours 0\.1\.0$", listed, re.M)
    assert "The outcome of the most similar patients" in listed


def test_the_plugin_passes_its_own_tests(built):
    folder, site = built
    said = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], folder, site)
    assert re.search(r"\b5 passed", said), said


def test_the_tree_on_the_page_names_the_files_that_are_shown(built):
    folder, _ = built
    shown = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    tree = re.search(r"^```text\nehr-neighbours/\n(.*?)^```", PAGE.read_text(), re.M | re.S)[1]
    assert shown == {line.split()[0] for line in tree.splitlines()}
