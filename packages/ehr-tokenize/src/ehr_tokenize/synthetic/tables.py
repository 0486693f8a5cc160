"""The parameters as Markdown tables, for `docs/synthetic.md`: ``python -m ehr_tokenize.synthetic.tables``."""

from collections.abc import Iterable, Sequence

from ehr_tokenize.synthetic import parameters as params


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _each(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _named(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:+g}" for name, weight in weights.items())


def diseases() -> str:
    """Onset of each disease and its effects."""
    head = ["disease", "at 65", "per 10 y", "male", "parents", "severity", "death", "readmission", "death at home"]
    numbers = ((d.severity, d.death, d.readmission, d.home_death) for d in params.DISEASES)
    rows = (
        (d.name, d.prevalence, d.age_slope, d.male, _named(d.parents), *effect, " ".join(d.icd), " ".join(d.atc))
        for d, effect in zip(params.DISEASES, numbers, strict=True)
    )
    return _table([*head, "ICD-10-CM", "ATC"], rows)


def reasons() -> str:
    """Reasons for admission."""
    rows = ((r.name, r.weight, r.planned, r.severity, r.unit, " ".join(r.icd)) for r in params.REASONS)
    return _table(("reason", "share, unplanned", "share, planned", "severity", "unit", "ICD-10-CM"), rows)


def severities() -> str:
    """What depends on severity alone."""
    rows: list[tuple[object, ...]] = [
        ("death in hospital, a day, at 65", *params.DEATH_PER_DAY),
        ("discharge, a day", *params.DISCHARGE_PER_DAY),
        ("log hazard ratio of readmission", *params.READMISSION_SEVERITY),
        *((f"P(`{s.code}`), {s.name}", *s.probability) for s in params.SIGNALS),
        *((f"P(discharge to {name})", *p) for name, p, _ in params.DESTINATIONS),
    ]
    return _table(("", "mild", "moderate", "severe", "critical"), rows)


def analytes() -> str:
    """Labs and vitals."""
    head = ("code", "law", "base", "sd", "shift at severity 1, 2, 3", "diseases", "grid", "measured")
    rows = (
        (
            *(f"`{a.code}`", "log-normal" if a.log else "normal", a.base, a.sd, _each(a.shift), _named(a.disease)),
            f"{a.low:g} to {a.high:g} by {a.step:g}",
            "arrival" + ", next morning" * a.repeated + ", daily" * a.daily,
        )
        for a in params.ANALYTES
    )
    return _table(head, rows)


def all_tables() -> dict[str, str]:
    """Each table by the heading that it has in the documentation."""
    found = {"Diseases": diseases(), "Reasons for admission": reasons(), "Severity": severities()}
    return found | {"Labs and vitals": analytes()}


if __name__ == "__main__":
    for heading, table in all_tables().items():
        print(f"### {heading}\n\n{table}\n")
