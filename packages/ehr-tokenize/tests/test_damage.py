"""Damage in a store's tokenizer, and in what a killed run left, is made good or refused in a line."""

import numpy as np
import pytest
from ehr_core.cli import run
from ehr_core.errors import FormatError
from ehr_core.formats.folder import file_digests
from ehr_core.testing.corruption import check_reader
from ehr_core.testing.tiny import write_tiny_meds
from ehr_tokenize.fit import summaries
from ehr_tokenize.store import command
from ehr_tokenize.store.jobs import load_tokenizer


class Killed(BaseException):
    pass


@pytest.fixture
def meds(tmp_path):
    return write_tiny_meds(tmp_path / "meds")


def tokenize(meds, output):
    run("ehr-tokenize", "tokenize", ["source=meds", f"source.path={meds}", f"output={output}", "tokenizer.min_count=1"])
    return output


def read_tokenizer(path):
    found = load_tokenizer(path)
    return found.vocabulary.tokens, found.prefix, found.settings, found.state()


def test_a_fitted_tokenizer(meds, tmp_path):
    store = tokenize(meds, tmp_path / "store")
    check_reader(read_tokenizer, store, tmp_path / "s", files="[tvp]*.json", times=1)


def test_a_tokenizer_whose_writer_made_the_mistake(meds, tmp_path):
    store = tokenize(meds, tmp_path / "store")
    for name in ("tokenizer.json", "prefix.json"):
        check_reader(read_tokenizer, store, tmp_path / "v", files=name, times=1, vouched=True)


@pytest.mark.slow
def test_what_a_killed_run_left(meds, tmp_path, monkeypatch):
    """Killed at the last moment: all shards are there, and their records."""
    expected = file_digests(tokenize(meds, tmp_path / "store"))

    def die(partial, path):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(command, "publish", die)
        with pytest.raises(Killed):
            tokenize(meds, tmp_path / "whole" / "store")
    (tmp_path / "whole" / "store.running" / "store" / "manifest.json").unlink()

    def read(path):
        return file_digests(tokenize(meds, path / "store"))

    for pattern in ("state.json", "train-0.json", "vocabulary.json", "held_out/0.safetensors"):
        check_reader(read, tmp_path / "whole", tmp_path / "s", files=pattern, times=1, skip=["deleted"], mended=True)
    assert read(tmp_path / "whole") == expected


def test_a_summary(tmp_path):
    kept = {"LAB//A": (3, 1.5), "LAB//B": (7, -2.0)}, np.arange(40.0)
    kind = tuple[dict[str, tuple[int, float]], np.ndarray]
    summaries.keep(kind, kept, tmp_path / "whole" / "0.safetensors")

    def read(path):
        return summaries.recall(kind, path / "0.safetensors")

    check_reader(read, tmp_path / "whole", tmp_path / "s", times=40)
    content = (tmp_path / "whole" / "0.safetensors").read_bytes()
    (tmp_path / "whole" / "0.safetensors").write_bytes(content[:-1] + b"\1")
    with pytest.raises(FormatError, match="its content was changed"):
        read(tmp_path / "whole")
