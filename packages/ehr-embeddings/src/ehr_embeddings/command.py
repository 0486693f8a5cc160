"""The command `embed`: vectors for the vocabulary of a token store, with the coverage on stdout."""

from pathlib import Path
from typing import Any

from ehr_core.config import to_plain
from ehr_core.formats.folder import MANIFEST, Manifest, check_free, file_digest
from ehr_core.formats.tokens import TokenStore
from ehr_core.plugins import build, registry

from ehr_embeddings.__about__ import __version__
from ehr_embeddings.plugin import EmbedConfig
from ehr_embeddings.vectors import FORMAT, VERSION, CodeVectors, read_vectors, write_vectors


def embed(settings: EmbedConfig) -> CodeVectors:
    """Write the folder of code vectors and open it. Raises EhrError."""
    output = Path(settings.output)
    check_free(output)
    store = TokenStore(settings.store)
    table = build("embedding", settings.embedding).embed(store.vocabulary, store.path)
    write_vectors(output, table, store.vocabulary, _manifest(settings.embedding, store))
    return read_vectors(output)


def main(settings: EmbedConfig) -> None:
    """`embed`, and what share of the vocabulary the vectors cover on stdout."""
    found = embed(settings)
    tokens, occurrences = found.coverage
    ordinary = sum(entry.kind != "special" for entry in found.vocabulary.tokens)
    covered = sum(map(bool, found.table.origin_V))
    print(f"{found.path}: vectors of width {found.table.vector_VD.shape[1]} for {covered:,} of {ordinary:,} tokens")
    print(f"coverage: {tokens:.1%} of tokens, {occurrences:.1%} of their occurrences in the train split")


def _manifest(embedding: Any, store: TokenStore) -> Manifest:
    plain = to_plain(embedding)
    inputs = {"store": store.manifest.digest}
    if path := plain.get("path"):
        # The place of a file says nothing about its content, and a manifest is the same anywhere: its name is enough.
        plain["path"] = Path(path).name
        inputs["vectors"] = file_digest(Path(path) / MANIFEST if Path(path).is_dir() else Path(path))
    made_by = sorted({f"ehr-embeddings=={__version__}", registry().version("embedding", embedding.name)})
    return Manifest(FORMAT, VERSION, made_by, {"embedding": plain}, inputs)
