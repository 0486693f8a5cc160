"""Co-occurrence vectors, against numbers worked out by hand and against a plain loop."""

import itertools
import math

import numpy as np
import pytest
import scipy.sparse as sparse
from ehr_core.errors import ConfigError, DataError, NotApplicable
from ehr_core.formats.tokens import TokenStore
from ehr_core.formats.vocabulary import UNK, Vocabulary
from ehr_embeddings import ppmi
from ehr_embeddings.plugin import PPMIConfig
from ehr_embeddings.ppmi import PPMIEmbedding, count, factorize, positive_pmi

# Windows of a week. Subject 1: {A, B}, then {A, C}. Subject 2: {A, B}. Subject 3: {C, D}, then {B} alone.
THREE = [
    [[(0, "A"), (1, "B"), (1, "A"), (8, "A"), (8, "C")], [(3, "A"), (9.5, "B")]],
    [[(0, "C"), (6.9, "D"), (7, "B")]],
]


def embed(store, **settings):
    settings = {"min_count": 1, "width": 2, **settings}
    return PPMIEmbedding(PPMIConfig(**settings)).embed(TokenStore(store).vocabulary, store)


def counted(store, days=7.0):
    opened = TokenStore(store)
    return opened.vocabulary, *count(opened.tables("train"), len(opened.vocabulary), days)


def test_counts_of_a_tiny_store_are_those_counted_by_hand(make_store):
    vocabulary, together, alone = counted(make_store("ABCD", train=THREE))
    a, b, c, d = (vocabulary[code] for code in "ABCD")
    expected = np.zeros((len(vocabulary), len(vocabulary)))
    expected[a, b] = expected[b, a] = 2
    expected[a, c] = expected[c, a] = 1
    expected[c, d] = expected[d, c] = 1
    assert np.array_equal(together.toarray(), expected)
    assert alone[[a, b, c, d]].tolist() == [3, 3, 2, 1]


def test_positive_pmi_is_the_formula_worked_out_by_hand(make_store):
    vocabulary, together, _ = counted(make_store("ABCD", train=THREE))
    a, b, c, d = (vocabulary[code] for code in "ABCD")
    found = positive_pmi(together).toarray()
    # Row sums: A 3, B 2, C 2, D 1; all pairs, both ways: 8.
    assert found[a, b] == pytest.approx(math.log(2 * 8 / (3 * 2)))
    assert found[a, c] == pytest.approx(math.log(1 * 8 / (3 * 2)))
    assert found[c, d] == pytest.approx(math.log(1 * 8 / (2 * 1)))
    assert found[b, c] == found[b, d] == found[a, d] == 0


def test_a_shift_takes_its_logarithm_off_and_cuts_at_zero(make_store):
    vocabulary, together, _ = counted(make_store("ABCD", train=THREE))
    found = positive_pmi(together, shift=2.0).toarray()
    assert found[vocabulary["C"], vocabulary["D"]] == pytest.approx(math.log(8 / 2) - math.log(2))
    assert found[vocabulary["A"], vocabulary["C"]] == 0


def test_windows_of_random_records_agree_with_a_plain_loop(make_store):
    random = np.random.default_rng(5)
    codes = [f"K{i}" for i in range(9)]
    subjects = []
    for _ in range(12):
        days = np.sort(random.uniform(0, 60, random.integers(0, 40)))
        subjects.append([(float(day), codes[random.integers(9)]) for day in days])
    store = make_store(codes, train=[subjects[:5], subjects[5:]])
    vocabulary, together, alone = counted(store, days=3.5)
    expected, single = np.zeros_like(together.toarray()), np.zeros_like(alone)
    for events in subjects:
        windows = {}
        for day, code in events:
            windows.setdefault(math.floor((day - events[0][0]) / 3.5), set()).add(vocabulary[code])
        for window in windows.values():
            for one, two in itertools.permutations(window, 2):
                expected[one, two] += 1
            for one in window:
                single[one] += 1
    assert np.array_equal(together.toarray(), expected)
    assert np.array_equal(alone, single)


def test_all_singular_vectors_give_back_the_matrix_of_a_positive_definite_case():
    matrix = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, 0.2], [0.1, 0.2, 1.0]])
    vectors = factorize(sparse.csr_array(matrix), 3).astype(np.float64)
    assert np.allclose(vectors @ vectors.T, matrix, atol=1e-6)


def test_the_iterative_svd_agrees_with_the_dense_one(monkeypatch):
    random = np.random.default_rng(2)
    half = np.maximum(random.normal(size=(60, 60)), 0)
    matrix = sparse.csr_array(half + half.T)
    dense = factorize(matrix, 5)
    monkeypatch.setattr(ppmi, "DENSE", 0)
    assert np.allclose(factorize(matrix, 5), dense, atol=1e-4)


def test_signs_are_fixed_by_the_largest_entry():
    matrix = np.maximum(np.random.default_rng(3).normal(size=(30, 30)), 0)
    vectors = factorize(sparse.csr_array(matrix + matrix.T), 4)
    assert (vectors[np.abs(vectors).argmax(axis=0), range(4)] > 0).all()


def test_codes_of_one_illness_are_nearer_to_each_other_than_to_the_other_illness(make_store):
    random = np.random.default_rng(0)
    heart, lung = [f"H{i}" for i in range(4)], [f"L{i}" for i in range(4)]
    subjects = []
    for number in range(200):
        illness = heart if number % 2 else lung
        subjects.append([(day, str(random.choice([*illness, "COMMON"]))) for day in range(12)])
    store = make_store([*heart, *lung, "COMMON"], train=[subjects])
    table, vocabulary = embed(store, window_days=100.0, width=2), TokenStore(store).vocabulary
    unit = table.vector_VD / np.maximum(np.linalg.norm(table.vector_VD, axis=1, keepdims=True), 1e-9)
    rows = [[vocabulary[code] for code in group] for group in (heart, lung)]
    within = min((unit[group] @ unit[group].T).min() for group in rows)
    across = (unit[rows[0]] @ unit[rows[1]].T).max()
    assert within > across + 0.5


def test_only_the_train_split_is_looked_at(make_store):
    other = [[[(0, "A"), (0, "D"), (1, "B"), (1, "D")]] * 9]
    one = embed(make_store("ABCD", "one", train=THREE))
    two = embed(make_store("ABCD", "two", train=THREE, tuning=other, held_out=other))
    assert np.array_equal(one.vector_VD, two.vector_VD)


def test_the_same_store_gives_the_same_bits_and_shards_do_not_matter(make_store):
    store = make_store("ABCD", train=THREE)
    merged = make_store("ABCD", "merged", train=[[subject for shard in THREE for subject in shard]])
    assert embed(store).vector_VD.tobytes() == embed(store).vector_VD.tobytes() == embed(merged).vector_VD.tobytes()


def test_rare_tokens_and_specials_have_no_vector(make_store):
    table = embed(make_store("ABCDE", train=THREE), min_count=2)
    vocabulary = Vocabulary.load(make_store("ABCDE", "again", train=THREE))
    having = [entry.token for entry, origin in zip(vocabulary.tokens, table.origin_V, strict=True) if origin]
    assert having == ["A", "B", "C"]
    assert not table.vector_VD[[UNK, vocabulary["D"], vocabulary["E"]]].any()
    assert table.vector_VD.dtype == np.float32


def test_a_width_beyond_the_tokens_there_are_is_refused(make_store):
    with pytest.raises(DataError, match=r"width=9, but only 4 tokens occur in 1 windows"):
        embed(make_store("ABCD", train=THREE), width=9)


def test_it_says_that_it_needs_a_store():
    with pytest.raises(NotApplicable, match="give store=DIR"):
        PPMIEmbedding(PPMIConfig()).embed(Vocabulary.build([]), None)


def test_senseless_settings_are_refused():
    with pytest.raises(ConfigError, match="window_days > 0"):
        PPMIEmbedding(PPMIConfig(window_days=0.0))
