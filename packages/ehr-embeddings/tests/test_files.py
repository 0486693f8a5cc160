"""Vectors from files: every form gives the same table, and nothing wrong goes unnoticed."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core.errors import ConfigError, DataError, EhrError, FormatError
from ehr_core.formats.folder import Manifest
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.protocols import EmbeddingTable
from ehr_core.testing.corruption import reseal
from ehr_embeddings.files import FileEmbedding, read_codes
from ehr_embeddings.plugin import FileConfig
from ehr_embeddings.vectors import coverage, read_vectors, write_vectors

CODES = ["ICD10CM//E11", "ATC//A10BA02", "LAB//glucose//mg/dL"]
VECTORS = np.array([[0.1, -2.0, 3.5], [1e-30, 7.25, -0.5], [4.0, 5.0, 6.0]], np.float32)


def write_parquet(path, codes=CODES, vectors=VECTORS):
    rows = pa.array([list(map(float, row)) for row in vectors], pa.list_(pa.float32()))
    pq.write_table(pa.table({"code": codes, "vector": rows}), path)


def write_columns(path, codes=CODES, vectors=VECTORS):
    pq.write_table(pa.table({"code": codes, **{f"v{i}": vectors[:, i] for i in range(vectors.shape[1])}}), path)


def write_csv(path, codes=CODES, vectors=VECTORS):
    lines = ["code," + ",".join(f"v{i}" for i in range(vectors.shape[1]))]
    lines += [f"{code}," + ",".join(map(repr, map(float, row))) for code, row in zip(codes, vectors, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def write_word2vec(path, codes=CODES, vectors=VECTORS):
    lines = [f"{len(codes)} {vectors.shape[1]}"]
    lines += [f"{code} " + " ".join(map(repr, map(float, row))) for code, row in zip(codes, vectors, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def write_glove(path, codes=CODES, vectors=VECTORS):
    write_word2vec(path, codes, vectors)
    path.write_text(path.read_text().split("\n", 1)[1])


WRITERS = {
    "list.parquet": write_parquet,
    "columns.parquet": write_columns,
    "rows.csv": write_csv,
    "word2vec.txt": write_word2vec,
    "glove.vec": write_glove,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_same_bits(name, tmp_path):
    WRITERS[name](tmp_path / name)
    codes, vectors = read_codes(tmp_path / name)
    assert codes == CODES
    assert vectors.dtype == np.float32
    assert vectors.tobytes() == VECTORS.tobytes()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e39])
def test_a_value_that_is_no_finite_float_names_file_and_row(name, bad, tmp_path):
    vectors = VECTORS.astype(np.float64)
    vectors[1, 2] = bad
    WRITERS[name](tmp_path / name, vectors=vectors)
    with pytest.raises(DataError, match=rf"{name}: row 2 \('ATC//A10BA02'\)"):
        read_codes(tmp_path / name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_code_that_comes_twice_names_both_rows(name, tmp_path):
    WRITERS[name](tmp_path / name, codes=["A", "B", "A"])
    with pytest.raises(DataError, match=r"rows 1 and 3 both give 'A'"):
        read_codes(tmp_path / name)


def test_rows_of_different_length_are_refused_with_the_row(tmp_path):
    pq.write_table(pa.table({"code": ["A", "B"], "vector": [[1.0, 2.0], [3.0]]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"row 2 has 1 values, row 1 has 2"):
        read_codes(tmp_path / "x.parquet")
    (tmp_path / "x.txt").write_text("A 1 2\nB 3\n")
    with pytest.raises(DataError, match=r"row 2 is not a code and 2 numbers"):
        read_codes(tmp_path / "x.txt")
    (tmp_path / "x.csv").write_text("code,v0,v1\nA,1,2\nB,3\n")
    with pytest.raises(FormatError, match="not readable CSV"):
        read_codes(tmp_path / "x.csv")


def test_an_empty_or_missing_vector_is_refused(tmp_path):
    pq.write_table(pa.table({"code": ["A", "B"], "vector": [[1.0, None], [3.0, 4.0]]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"row 1 \('A'\)"):
        read_codes(tmp_path / "x.parquet")
    pq.write_table(pa.table({"code": ["A", "B"], "vector": [[1.0], None]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match=r"row 2 has 0 values"):
        read_codes(tmp_path / "y.parquet")
    pq.write_table(
        pa.table({"code": pa.array([], pa.string()), "v0": pa.array([], pa.float32())}), tmp_path / "z.parquet"
    )
    with pytest.raises(DataError, match="holds no vectors"):
        read_codes(tmp_path / "z.parquet")


def test_columns_in_another_order_are_refused_rather_than_sorted(tmp_path):
    (tmp_path / "x.csv").write_text("code,v1,v0\nA,1,2\n")
    with pytest.raises(DataError, match=r"v0, v1, \.\.\. in order; found 'v1'"):
        read_codes(tmp_path / "x.csv")


def test_text_among_the_numbers_names_row_and_column(tmp_path):
    (tmp_path / "x.csv").write_text("code,v0,v1\nA,1,2\nB,3,many\n")
    with pytest.raises(DataError, match=r"row 2, column 'v1'"):
        read_codes(tmp_path / "x.csv")


def test_codes_that_look_like_numbers_stay_text(tmp_path):
    (tmp_path / "x.csv").write_text("code,v0\n0250,1\nNA,2\n")
    assert read_codes(tmp_path / "x.csv")[0] == ["0250", "NA"]


def test_word2vec_text_with_a_header_may_have_blanks_in_codes(tmp_path):
    (tmp_path / "x.txt").write_text("1 2\nblood pressure 1 2\n")
    assert read_codes(tmp_path / "x.txt")[0] == ["blood pressure"]


def test_a_file_cut_short_is_noticed(tmp_path):
    write_word2vec(tmp_path / "x.txt")
    (tmp_path / "x.txt").write_text("\n".join((tmp_path / "x.txt").read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match="promises 3 rows, but there are 2"):
        read_codes(tmp_path / "x.txt")
    write_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-20])
    with pytest.raises(FormatError, match="not a readable Parquet"):
        read_codes(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["none.parquet", "none.csv", "none.txt", "vectors.pickle", "vectors"])
def test_a_missing_or_foreign_file_is_one_line(name, tmp_path):
    with pytest.raises(EhrError, match=name):
        read_codes(tmp_path / name)


def file_table(tmp_path, tokens, **settings):
    write_parquet(tmp_path / "v.parquet")
    vocabulary = Vocabulary.build(tokens)
    return vocabulary, FileEmbedding(FileConfig(path=str(tmp_path / "v.parquet"), **settings)).embed(vocabulary, None)


def test_tokens_find_rows_by_name_by_code_and_by_the_mean_of_their_codes(tmp_path):
    tokens = [
        Token(CODES[2], "code", ("elsewhere",), 5),
        Token("E11", "code", (CODES[0],), 3),
        Token("A//mixed", "code", (CODES[0], "unknown", CODES[1]), 1),
        Token("lost", "code", ("nowhere",), 1),
    ]
    vocabulary, table = file_table(tmp_path, tokens)
    assert table.vector_VD[7].tobytes() == VECTORS[2].tobytes()
    assert table.vector_VD[8].tobytes() == VECTORS[0].tobytes()
    assert np.allclose(table.vector_VD[9], (VECTORS[0] + VECTORS[1]) / 2)
    assert not table.vector_VD[10].any()
    assert table.origin_V[7:] == [CODES[2], CODES[0], "mean of 2 codes", ""]
    assert table.origin_V[:7] == [""] * 7
    assert coverage(vocabulary, table) == (0.75, 0.9)


def test_a_bare_code_does_not_match_another_vocabulary(tmp_path):
    _, table = file_table(tmp_path, [Token("E11", "code", ("E11",)), Token("ICD9CM//E11", "code", ("ICD9CM//E11",))])
    assert not table.vector_VD.any()


def test_another_width_than_asked_for_names_both(tmp_path):
    with pytest.raises(ConfigError, match=r"width 3, but embedding.width=128"):
        file_table(tmp_path, [Token("A", "code")], width=128)


def test_vectors_survive_saving_and_loading_bit_for_bit(tmp_path):
    vocabulary = Vocabulary.build([Token(code, "code", (code,), 1) for code in CODES])
    vectors = np.zeros((len(vocabulary), 3), np.float32)
    vectors[7:] = np.nextafter(VECTORS, np.float32(9.0))
    vectors[7, 0] = np.float32(-0.0)
    table = EmbeddingTable(vectors, [""] * 7 + CODES)
    write_vectors(tmp_path / "out", table, vocabulary, Manifest("code-vectors", 1, ["test==0"], {}))
    opened = read_vectors(tmp_path / "out")
    again, found = opened.table, opened.vocabulary
    assert again.vector_VD.tobytes() == vectors.tobytes()
    assert again.origin_V == table.origin_V
    assert found.digest == vocabulary.digest
    codes, rows = read_codes(tmp_path / "out")
    assert codes == CODES
    assert rows.tobytes() == vectors[7:].tobytes()


def test_a_folder_whose_parts_do_not_fit_is_refused(tmp_path):
    vocabulary = Vocabulary.build([Token(code, "code") for code in CODES])
    table = EmbeddingTable(np.ones((len(vocabulary), 2), np.float32), ["x"] * len(vocabulary))
    write_vectors(tmp_path / "out", table, vocabulary, Manifest("code-vectors", 1, ["test==0"], {}))
    (tmp_path / "out" / "origin.json").write_text("[]")
    with pytest.raises(FormatError, match=r"origin\.json is damaged or another file"):
        read_vectors(tmp_path / "out")
    reseal(tmp_path / "out")
    with pytest.raises(FormatError, match="differ in length"):
        read_vectors(tmp_path / "out")
    Vocabulary.build([]).save(tmp_path / "out")
    reseal(tmp_path / "out")
    with pytest.raises(FormatError, match="not the one the vectors were made for"):
        read_vectors(tmp_path / "out")
