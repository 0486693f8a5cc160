"""Checks of sources and embeddings. They need polars."""

from pathlib import Path

import numpy as np

from ehr_core.component import Component
from ehr_core.constants import SPLITS
from ehr_core.formats.folder import file_digests
from ehr_core.formats.meds import read_events, shards, subject_splits
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build
from ehr_core.testing.base import Check, small_settings, tiny_dataset


def check_source_writes_meds(kind: str, component: Component, folder: Path) -> None:
    """What the source provides is read as MEDS, has all splits, lies where it says, and is the same twice."""
    executor = build("executor", SerialConfig())
    digests = []
    for attempt in ("first", "second"):
        source = component.load()(small_settings(component, path=tiny_dataset(folder)))
        output = folder / attempt
        output.mkdir()
        meds = source.provide(output, executor)
        expected = output if source.place is None else source.place
        assert meds == expected, f"provide gave {meds}, but place is {source.place}: it has to be {expected}"
        assert source.place is None or not any(output.iterdir()), "place is given, and files were written besides"
        digests.append(file_digests(meds))
        found = shards(meds)
        assert {shard.split for shard in found} == set(SPLITS)
        subject_splits(found)
        for shard in found:
            read_events(shard.path)
    assert digests[0] == digests[1], "the same settings gave different files"


def check_embedding_shape(kind: str, component: Component, folder: Path) -> None:
    """One finite float32 row a token, and an origin for each."""
    vocabulary = Vocabulary.build([Token(f"CODE//{i}", "code", (f"CODE//{i}",), 10 - i) for i in range(5)])
    table = component.load()(small_settings(component)).embed(vocabulary, None)
    assert table.vector_VD.dtype == np.float32
    assert table.vector_VD.shape[0] == len(vocabulary) == len(table.origin_V)
    assert np.isfinite(table.vector_VD).all()


CHECKS: dict[str, list[Check]] = {"source": [check_source_writes_meds], "embedding": [check_embedding_shape]}
