"""``ehr-eval label | fit | predict | apply | evaluate | report | benchmark``; others by the packages that have them."""

from ehr_core.cli import program

ELSEWHERE = ("generate", "represent")
"""Commands of packages that have models, under the one roof that users look for them."""

main = program(
    "ehr-eval", "ehr-eval", "", "label", "fit", "predict", "apply", "evaluate", "report", "benchmark", *ELSEWHERE
)
