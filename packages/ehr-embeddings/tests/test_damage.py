"""Files that were damaged on the way: code vectors are read the same, or refused in a line."""

import numpy as np
import pyarrow as pa
from ehr_core.formats.folder import Manifest
from ehr_core.formats.parquet import write_table
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.protocols import EmbeddingTable
from ehr_core.testing.corruption import check_reader
from ehr_embeddings.files import read_codes
from ehr_embeddings.vectors import read_vectors, write_vectors

CODES = [f"LAB//{number}" for number in range(30)]


def write(path):
    vocabulary = Vocabulary.build([Token(code, "code", (code,), 2) for code in CODES])
    vectors = np.random.default_rng(0).normal(size=(len(vocabulary), 4)).astype(np.float32)
    table = EmbeddingTable(vectors, [""] * 7 + CODES)
    write_vectors(path, table, vocabulary, Manifest("code-vectors", 1, ["test==0"], {"width": 4}))
    return path


def read(path):
    found = read_vectors(path)
    return found.table, found.vocabulary.tokens, found.coverage, read_codes(path)


def test_a_folder_of_code_vectors(tmp_path):
    check_reader(read, write(tmp_path / "whole"), tmp_path / "s", times=4)


def test_a_folder_of_code_vectors_whose_writer_made_the_mistake(tmp_path):
    check_reader(read, write(tmp_path / "whole"), tmp_path / "s", times=2, vouched=True)


def test_a_table_of_vectors(tmp_path):
    table = pa.table({"code": CODES, **{f"v{k}": np.linspace(k, k + 1, 30) for k in range(3)}})
    write_table(tmp_path / "whole" / "x.parquet", table)
    check_reader(lambda path: read_codes(path / "x.parquet"), tmp_path / "whole", tmp_path / "s", times=20)
