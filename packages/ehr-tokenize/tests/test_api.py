"""The package from Python: functions from settings to what they made, and nothing heavy before they are used."""

import subprocess
import sys

import ehr_tokenize
import polars as pl
import pytest
from ehr_core.cli import run
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.folder import file_digests
from ehr_core.formats.tokens import TokenStore
from ehr_core.plugin import MedsConfig, SerialConfig
from ehr_core.testing.tiny import SUBJECTS, write_tiny_meds
from ehr_tokenize.plugin import EthosConfig
from ehr_tokenize.synthetic.settings import SyntheticConfig


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, ehr_tokenize; print([m for m in ('numpy', 'polars', 'pyarrow', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(dir(ehr_tokenize)) == {"MakeConfig", "TokenizeConfig", "load_tokenizer", "make", "tokenize"}


def test_tokenize_returns_the_opened_store_and_prints_nothing(tmp_path, capsys):
    meds = write_tiny_meds(tmp_path / "meds")
    settings = ehr_tokenize.TokenizeConfig(
        source=MedsConfig(path=meds), tokenizer=EthosConfig(min_count=1), executor=SerialConfig(), output=tmp_path / "s"
    )
    store = ehr_tokenize.tokenize(settings)
    assert isinstance(store, TokenStore)
    assert store.path == tmp_path / "s"
    assert store.manifest.content["splits"]["train"]["subjects"] == len(SUBJECTS["train"])
    assert capsys.readouterr().out == ""
    run(
        "ehr-tokenize",
        "tokenize",
        ["source=meds", f"source.path={meds}", "tokenizer.min_count=1", f"output={tmp_path}/t"],
    )
    assert "tokens in" in capsys.readouterr().out
    assert file_digests(tmp_path / "t") == file_digests(tmp_path / "s")
    assert ehr_tokenize.load_tokenizer(store.path).vocabulary.tokens == store.vocabulary.tokens


def test_make_keeps_the_records_of_a_source(tmp_path, capsys):
    source = SyntheticConfig(num_subjects=30)
    folder = ehr_tokenize.make(ehr_tokenize.MakeConfig(source=source, executor=SerialConfig(), output=tmp_path / "a"))
    assert folder == tmp_path / "a"
    assert capsys.readouterr().out == ""
    events = pl.read_parquet(sorted(folder.glob("data/*/*.parquet")))
    assert events["subject_id"].n_unique() == 30
    run("ehr-tokenize", "make", ["source=synthetic", "source.num_subjects=30", f"output={tmp_path}/b"])
    assert capsys.readouterr().out.startswith(f"{len(events):,} events in 3 shards -> ")
    assert file_digests(tmp_path / "b") == file_digests(folder)


def test_records_that_are_meds_already_are_not_made_again(tmp_path):
    meds = write_tiny_meds(tmp_path / "meds")
    with pytest.raises(ConfigError, match="source=meds has its records as MEDS already"):
        run("ehr-tokenize", "make", ["source=meds", f"source.path={meds}", f"output={tmp_path}/b"])
    assert not (tmp_path / "b").exists()
    with pytest.raises(FormatError, match="exists already"):
        run("ehr-tokenize", "make", ["source=synthetic", f"output={meds}"])
