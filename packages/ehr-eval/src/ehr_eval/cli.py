"""``ehr-eval label | predict | evaluate | report | benchmark``."""

from ehr_core.cli import program

main = program("ehr-eval", "ehr-eval", "", "label", "predict", "evaluate", "report", "benchmark")
