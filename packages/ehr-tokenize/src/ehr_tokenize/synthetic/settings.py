"""Settings of the synthetic source. Import-light: standard library only."""

from dataclasses import dataclass


@dataclass
class SyntheticConfig:
    """A made-up hospital cohort whose true outcome probabilities are known; `docs/synthetic.md` has the model."""

    name: str = "synthetic"
    num_subjects: int = 2000
    """How many patients; each has at least one admission, and about 100 events."""
    seed: int = 1
    """Same seed and settings, same bytes, whatever the executor."""
    novel_probability: float = 0.0
    """Chance that a diagnosis or drug code is replaced by a variant that no published vocabulary has."""
    missingness: float = 0.1
    """Chance that a planned lab or vital is not in the record, independent of everything else."""
    train: float = 0.8
    """Share of the subjects in the split ``train``."""
    tuning: float = 0.1
    """Share of the subjects in the split ``tuning``."""
    held_out: float = 0.1
    """Share of the subjects in the split ``held_out``; the three add up to 1."""
    shard_subjects: int = 2000
    """Subjects of one shard; memory is bounded by one shard (about 200,000 events by default)."""
    study_start: str = "2010-01-01"
    """First day on which a patient can be admitted, as YYYY-MM-DD."""
    study_end: str = "2020-01-01"
    """Midnight at which observation ends for everyone, as YYYY-MM-DD; no event is later."""
    severity_signal: float = 1.0
    """Factor on what severity does to labs and vitals; 0 makes them say nothing about it."""
    mortality_scale: float = 1.0
    """Factor on the hazard of death in hospital."""
    readmission_scale: float = 1.0
    """Factor on the hazard of admission within 30 days of a discharge."""
