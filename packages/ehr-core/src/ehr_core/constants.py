"""Names of the MEDS standard and lengths of time that every package shares. Importing this imports nothing."""

SPLITS = ("train", "tuning", "held_out")
DATA = "data"
"""Both are those of the package ``meds``, as a test makes sure: importing it would take a tenth of a second."""
MEDS_BIRTH = "MEDS_BIRTH"
MEDS_DEATH = "MEDS_DEATH"

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
"""Microseconds, the unit of every time in a token store."""
DAY_SECONDS = 86_400
YEAR_DAYS = 365.25
YEAR_US = YEAR_DAYS * DAY_US
