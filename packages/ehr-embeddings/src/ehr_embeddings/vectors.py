"""Folder of code vectors: what `embed` writes and models start from.

    VECTORS/manifest.json  vocabulary.json  vector.safetensors  origin.json

``vector.safetensors`` holds ``vector_VD`` float32, row i for token i; ``origin.json`` lists per row where the vector
came from, empty for a row of zeros. V tokens, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ehr_core.errors import FormatError
from ehr_core.formats.arrays import map_arrays
from ehr_core.formats.folder import Manifest, new_folder, read_json, read_manifest, write_json, write_manifest
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.protocols import EmbeddingTable
from safetensors.numpy import save_file

FORMAT, VERSION = "code-vectors", 1
VECTOR, ORIGIN = "vector.safetensors", "origin.json"


def table_of(vocabulary: Vocabulary, vectors: Mapping[str, np.ndarray], width: int) -> EmbeddingTable:
    """Rows for a vocabulary from vectors (D,) by code.

    A token takes the vector of its own name; else, of the MEDS codes that it stands for: their mean where several have
    one. Other rows are zeros with an empty origin.
    """
    vector_VD = np.zeros((len(vocabulary), width), np.float32)
    origin_V = [""] * len(vocabulary)
    for index, entry in enumerate(vocabulary.tokens):
        codes = (entry.token,) if entry.token in vectors else tuple(code for code in entry.codes if code in vectors)
        if not codes:
            continue
        # A single code is copied, not averaged: its bits stay as they are.
        vector_VD[index] = vectors[codes[0]] if len(codes) == 1 else _mean([vectors[code] for code in codes])
        origin_V[index] = codes[0] if len(codes) == 1 else f"mean of {len(codes)} codes"
    return EmbeddingTable(vector_VD, origin_V)


def _mean(rows: list[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(np.stack(rows), axis=0, dtype=np.float64))


def coverage(vocabulary: Vocabulary, table: EmbeddingTable) -> tuple[float, float]:
    """Share of tokens, and of their occurrences in training, with a vector; specials are left out. NaN for none."""
    ordinary = np.array([entry.kind != "special" for entry in vocabulary.tokens])
    found = np.array([bool(origin) for origin in table.origin_V])[ordinary]
    count = np.array([entry.count for entry in vocabulary.tokens])[ordinary]
    tokens = float(found.mean()) if found.size else float("nan")
    return tokens, float(count[found].sum() / count.sum()) if count.sum() else float("nan")


def write_vectors(folder: Path, table: EmbeddingTable, vocabulary: Vocabulary, manifest: Manifest) -> Manifest:
    """Make the folder; ``manifest`` says who and from what, its content and files are filled in here."""
    if table.vector_VD.shape[0] != len(vocabulary) or len(table.origin_V) != len(vocabulary):
        raise FormatError(f"{len(table.vector_VD)} vectors for a vocabulary of {len(vocabulary)} tokens")
    manifest.content.update(vocabulary=vocabulary.digest, width=int(table.vector_VD.shape[1]))
    manifest.content["with_vector"] = sum(map(bool, table.origin_V))
    with new_folder(folder) as partial:
        save_file({"vector_VD": np.ascontiguousarray(table.vector_VD, np.float32)}, partial / VECTOR)
        write_json(partial / ORIGIN, table.origin_V)
        vocabulary.save(partial)
        return write_manifest(partial, manifest)


@dataclass(frozen=True)
class CodeVectors:
    """A folder of code vectors opened for reading; the vectors are memory-mapped."""

    path: Path
    table: EmbeddingTable
    vocabulary: Vocabulary
    """What the rows follow."""

    @property
    def coverage(self) -> tuple[float, float]:
        """Share of tokens, and of their occurrences in training, with a vector."""
        return coverage(self.vocabulary, self.table)


def read_vectors(folder: Path) -> CodeVectors:
    """Open a folder of code vectors. Raises FormatError when its parts do not fit."""
    manifest = read_manifest(folder, FORMAT, VERSION)
    vocabulary = Vocabulary.load(folder)
    if manifest.content.get("vocabulary") != vocabulary.digest:
        raise FormatError(f"{folder}: vocabulary.json is not the one the vectors were made for; make them anew")
    arrays, origins = map_arrays(folder / VECTOR), read_json(folder / ORIGIN, list[str])
    vector_VD = arrays.get("vector_VD")
    if vector_VD is None or vector_VD.ndim != 2 or not len(vector_VD) == len(origins) == len(vocabulary):
        raise FormatError(f"{folder}: {VECTOR}, {ORIGIN} and vocabulary.json differ in length; make them anew")
    return CodeVectors(folder, EmbeddingTable(vector_VD, origins), vocabulary)
