"""Hashes of ids and locks of folders."""

import numpy as np
import pytest
from ehr_core.errors import EhrError
from ehr_core.hashing import hash_ids
from ehr_core.locks import held


def splitmix64(state: int) -> int:
    """The published algorithm, on Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 7, [3, 1]])
def test_a_hash_is_splitmix64_of_id_and_seed(seed):
    ids = np.array([0, 1, 2**62, 987_654_321])
    key = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    assert hash_ids(ids, seed).tolist() == [splitmix64(int(index) ^ key) for index in ids]
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the first number of the reference implementation


def test_another_seed_is_another_hash():
    ids = np.arange(1000)
    assert not (hash_ids(ids, 1) == hash_ids(ids, 2)).any()
    assert (hash_ids(ids, -1) == hash_ids(ids, 1)).all()


def test_a_second_process_does_not_get_the_folder(tmp_path):
    with held(tmp_path / "out", "making"):
        assert (tmp_path / "out.lock").exists()
        with (
            pytest.raises(EhrError, match=r"another process is filling .*out; wait"),
            held(tmp_path / "out", "filling"),
        ):
            pass
    assert not (tmp_path / "out.lock").exists()
    with held(tmp_path / "out", "making"):
        pass
