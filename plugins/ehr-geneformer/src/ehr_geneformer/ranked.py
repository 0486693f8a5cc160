"""The command ``ranked-store``: Parquet of sentences that are ranked already, as Geneformer publishes them, to a store.

A row is a subject, numbered from 1 through the files in order of name. Such a sentence has no time: all its tokens are
at time 0. The store holds the tokenizer ``rank_value`` with the published vocabulary, ids unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ehr_core.config import to_plain
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import Manifest, check_free, digest_of, file_digest, new_folder, write_manifest
from ehr_core.formats.pages import checked
from ehr_core.formats.tokens import FORMAT, VERSION, TokenTable
from ehr_core.formats.vocabulary import PAD, Vocabulary
from ehr_core.plugins import registry
from ehr_core.progress import Progress
from ehr_tokenize.sources.splits import shares_of, split_of

from ehr_geneformer.plugin import RankedStoreConfig, RankValueConfig
from ehr_geneformer.tokenizer import RankValue, sentences

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
COUNTED = ("shards", "subjects", "events", "tokens", "unk", "non_finite")


@dataclass(frozen=True)
class Sentences:
    """Some rows of a file, flat: sentence r is ``token[offset[r]:offset[r + 1]]``."""

    token: np.ndarray
    offset: np.ndarray


def ranked_store(settings: RankedStoreConfig) -> int:
    """Write the token store ``settings.output`` and print what is in it. Raises EhrError."""
    shares = shares_of(*(settings.splits[split] for split in SPLITS))
    if settings.shard_rows < 1:
        raise ConfigError(f"shard_rows is {settings.shard_rows}; it must be at least 1")
    output = Path(settings.output)
    check_free(output)
    files = _files(Path(settings.path))
    tokenizer = RankValue(RankValueConfig(vocabulary=settings.vocabulary, medians=settings.medians))
    tokenizer.read_published()
    size = len(tokenizer.vocabulary)
    totals = {split: Counter(dict.fromkeys(COUNTED, 0)) for split in SPLITS}
    count_V = np.zeros(size, np.int64)
    bar = Progress("ranked-store", sum(pq.read_metadata(file).num_rows for file in files), "sentences")
    with new_folder(output) as partial:
        first = 1
        for found in _sentences(files, size, settings.shard_rows):
            rows = len(found.offset) - 1
            subject_id = np.arange(first, first + rows)
            split_S = split_of(subject_id, settings.seed, shares)
            for index, split in enumerate(SPLITS):
                table = _chosen(found, subject_id, split_S == index, size)
                if len(table.subject_id):
                    table.write(partial / split / f"{totals[split]['shards']}.safetensors")
                    tokens = len(table.token)
                    totals[split].update(shards=1, subjects=len(table.subject_id), events=tokens, tokens=tokens)
                if index == 0:
                    count_V += np.bincount(table.token, minlength=size)
            first += rows
            bar.update(rows)
        bar.close()
        _finish(settings, tokenizer, count_V, totals, files, partial)
    tokens = sum(counts["tokens"] for counts in totals.values())
    print(f"{first - 1:,} sentences -> {tokens:,} tokens in {output}; vocabulary {size:,}")
    return 0


def _files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise FormatError(f"{path} has no Parquet file")
    for file in files:
        try:
            schema = pq.read_schema(checked(file))
        except FileNotFoundError:
            raise FormatError(f"{file} is missing") from None
        except (pa.ArrowException, OSError) as error:
            raise FormatError(f"{file} is damaged or no Parquet file: {str(error).splitlines()[0]}") from error
        if "input_ids" not in schema.names:
            raise DataError(f"{file} has no column 'input_ids'; it has {', '.join(schema.names) or 'none'}")
        kind = schema.field("input_ids").type
        if not (any(is_kind(kind) for is_kind in LISTS) and pa.types.is_integer(kind.value_type)):
            raise DataError(f"{file}: column 'input_ids' is {kind}, expected lists of integers")
    return files


def _sentences(files: list[Path], size: int, batch: int) -> Iterator[Sentences]:
    """The sentences of all files in batches, checked."""
    for file in files:
        first = 1
        with pq.ParquetFile(file) as opened:
            columns = [name for name in ("input_ids", "length") if name in opened.schema_arrow.names]
            for rows in opened.iter_batches(batch, columns=columns):
                yield _checked(rows, size, file, first)
                first += len(rows)


def _checked(rows: pa.RecordBatch, size: int, file: Path, first: int) -> Sentences:
    """One batch as numpy. Raises DataError that names file and row (counted from 1)."""
    lists = rows["input_ids"]
    if lists.null_count:
        raise DataError(f"{file}, row {first + int(np.argmax(lists.is_null()))}: input_ids is null")
    if pa.types.is_fixed_size_list(lists.type):  # without nulls each has as many, and there are no offsets
        offset = np.arange(len(lists) + 1, dtype=np.int64) * lists.type.list_size
    else:
        offset = lists.offsets.to_numpy().astype(np.int64)
    flat = lists.flatten()
    if flat.null_count:
        raise DataError(f"{file}: {flat.null_count} ids in rows {first} to {first + len(rows) - 1} are null")
    token = flat.to_numpy()
    offset = offset - offset[0]
    bad = np.flatnonzero((token <= PAD) | (token >= size))
    if len(bad):
        row = first + int(np.searchsorted(offset, bad[0], side="right")) - 1
        raise DataError(
            f"{file}, row {row}: {len(bad)} ids from here on are padding or outside of the vocabulary (1 to {size - 1})"
        )
    if "length" in rows.schema.names:
        wrong = np.flatnonzero(rows["length"].to_numpy(zero_copy_only=False) != np.diff(offset))
        if len(wrong):
            raise DataError(f"{file}, row {first + int(wrong[0])}: length is not the number of input_ids")
    return Sentences(token, offset)


def _chosen(found: Sentences, subject_id: np.ndarray, keep_S: np.ndarray, size: int) -> TokenTable:
    """The token table of some of the sentences."""
    length_S = np.diff(found.offset)
    token = found.token[np.repeat(keep_S, length_S)].astype(np.uint16 if size <= 1 << 16 else np.uint32)
    number = int(keep_S.sum())
    return sentences(subject_id[keep_S], np.repeat(np.arange(number), length_S[keep_S]), token, np.zeros(number, int))


def _finish(
    settings: RankedStoreConfig,
    tokenizer: RankValue,
    count_V: np.ndarray,
    totals: dict[str, Counter[str]],
    files: list[Path],
    folder: Path,
) -> None:
    """Write the tokenizer, its vocabulary with the counts of train, and the manifest."""
    tokenizer.count(count_V)
    tokenizer.save(folder)
    vocabulary: Vocabulary = tokenizer.vocabulary
    plain: dict[str, Any] = to_plain(settings)
    for name in ("path", "output"):
        del plain[name]
    for name in ("vocabulary", "medians"):
        plain[name] = Path(plain[name]).name if plain[name] else None
    content = {
        "vocabulary": vocabulary.digest,
        "vocabulary_size": len(vocabulary),
        "columns": [],
        "splits": {split: dict(counts) for split, counts in totals.items()},
    }
    made_by = [registry().version("command", "ranked-store")]
    inputs = {"source": digest_of([file_digest(file) for file in files])}
    write_manifest(folder, Manifest(FORMAT, VERSION, made_by, plain, inputs, content))
