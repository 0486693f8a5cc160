import numpy as np
import pytest
from ehr_core.formats.folder import Manifest, write_manifest
from ehr_core.formats.tokens import NO_TIME, Prefix, TokenTable, write_prefix
from ehr_core.formats.vocabulary import Token, Vocabulary

DAY = 86_400 * 1_000_000


def shard(subjects, columns=None):
    """A shard from, per subject, a list of (day, token id)."""
    length = [len(events) for events in subjects]
    flat = [event for events in subjects for event in events]
    none = np.zeros(0, np.int64)
    return TokenTable(
        subject_id=np.arange(1, len(subjects) + 1),
        offset=np.concatenate([[0], np.cumsum(length)]).astype(np.int64),
        token=np.array([token for _, token in flat], np.uint16),
        time=np.array([int(day * DAY) for day, _ in flat], np.int64),
        birth=np.full(len(subjects), NO_TIME),
        static_offset=np.zeros(len(subjects) + 1, np.int64),
        static_slot=none.astype(np.uint16),
        static_token=none.astype(np.uint16),
        static_time=none,
    )


@pytest.fixture
def make_store(tmp_path):
    """A token store from tokens by name and, per split, shards of subjects of (day, name)."""

    def make(tokens, name="store", **splits):
        folder = tmp_path / name
        folder.mkdir()
        vocabulary = Vocabulary.build([token if isinstance(token, Token) else Token(token, "code") for token in tokens])
        vocabulary.save(folder)
        write_prefix(folder, Prefix())
        for split, shards in splits.items():
            for number, subjects in enumerate(shards):
                ids = [[(day, vocabulary[code]) for day, code in events] for events in subjects]
                shard(ids).write(folder / split / f"{number}.safetensors")
        content = {"vocabulary": vocabulary.digest, "columns": []}
        write_manifest(folder, Manifest("token-store", 1, ["test==0"], {}, {}, content))
        return folder

    return make
