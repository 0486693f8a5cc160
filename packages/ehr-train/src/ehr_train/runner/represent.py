"""The command ``represent``: hidden states of patients, from a trained run."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from ehr_core.formats.folder import Manifest, check_free, new_folder, write_manifest
from ehr_core.formats.parquet import write_table
from ehr_core.plugin import MedsConfig

from ehr_train import api
from ehr_train.__about__ import __version__
from ehr_train.runner.samples import opened
from ehr_train.runner.settings import RepresentConfig

FORMAT, VERSION, FILE = "representations", 1, "representations.parquet"


def represent(settings: RepresentConfig) -> pa.Table:
    """Write OUTPUT/representations.parquet: ``subject_id``, ``prediction_time``, ``split`` and ``hidden`` (D numbers).

    Rows are ordered by split, subject and time. Returns the table.
    """
    output = Path(settings.output)
    check_free(output)
    loaded = api.load(settings.run, settings.device)
    labels = Path(settings.labels) if settings.labels is not None else None
    with opened(loaded.run, labels, settings) as (store, samples):
        hidden_ND = loaded.represent(store.path, samples, settings.layer, settings.pooling).astype(np.float32)
        rows = [
            samples.tables[split]
            .select(["subject_id", "prediction_time"])
            .append_column("split", pa.array([split] * len(samples.tables[split]), pa.string()))
            for split in samples.splits
        ]
    width = hidden_ND.shape[1]
    hidden = pa.FixedSizeListArray.from_arrays(pa.array(hidden_ND.ravel()), width)
    table = pa.concat_tables(rows).append_column("hidden", hidden)
    with new_folder(output) as folder:
        write_table(folder / FILE, table)
        facts = {"layer": settings.layer, "pooling": settings.pooling, "splits": list(settings.splits)}
        content = {"width": width, "rows": len(table)}
        inputs = {"run": loaded.run.digest}
        write_manifest(folder, Manifest(FORMAT, VERSION, [f"ehr-train=={__version__}"], facts, inputs, content))
    return table


def represent_records(run: Path, meds: Path, labels: Path | None, scratch: Path) -> pa.Table:
    """`represent` of a MEDS folder."""
    output = scratch / "representations"
    return represent(RepresentConfig(source=MedsConfig(path=meds), run=run, labels=labels, output=output))


def main(settings: RepresentConfig) -> None:
    """`represent`, and what was written on stdout."""
    table = represent(settings)
    width = table.schema.field("hidden").type.list_size
    print(f"{len(table):,} representations of width {width} in {Path(settings.output) / FILE}")
