"""For the tests of sources, ours and anybody's."""

import json
from pathlib import Path

import meds
import pyarrow.parquet as pq
from ehr_core.formats.meds import read_events, shards


def check_meds(folder: Path) -> None:
    """Raise an error of `meds` unless every file of a dataset fits its schema, or of ours where it cannot be read."""
    for shard in shards(folder):
        meds.DataSchema.validate(pq.read_table(shard.path))
        read_events(shard.path)
    meds.CodeMetadataSchema.validate(pq.read_table(folder / meds.code_metadata_filepath))
    meds.SubjectSplitSchema.validate(pq.read_table(folder / meds.subject_splits_filepath))
    meds.DatasetMetadataSchema.validate(json.loads((folder / meds.dataset_metadata_filepath).read_text()))
