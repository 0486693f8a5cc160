"""For the tests of sources, ours and anybody's."""

from pathlib import Path
from typing import Any

import meds
from ehr_core.formats.folder import read_json
from ehr_core.formats.meds import read_events, shards
from ehr_core.formats.parquet import read_table


def check_meds(folder: Path) -> None:
    """Raise an error of `meds` unless every file of a dataset fits its schema, or of ours where it cannot be read."""
    for shard in shards(folder):
        meds.DataSchema.validate(read_table(shard.path))
        read_events(shard.path)
    meds.CodeMetadataSchema.validate(read_table(folder / meds.code_metadata_filepath))
    meds.SubjectSplitSchema.validate(read_table(folder / meds.subject_splits_filepath))
    meds.DatasetMetadataSchema.validate(read_json(folder / meds.dataset_metadata_filepath, dict[str, Any]))
