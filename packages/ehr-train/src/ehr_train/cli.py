"""The console script ``ehr-train``."""

from ehr_core.cli import program

main = program("ehr-train", "ehr-train", "train")
