"""Version of ehr-embeddings."""

__version__ = "0.1.0"
