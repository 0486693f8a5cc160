"""MIMIC-IV as it is distributed, to MEDS, through the public MEDS ETL in an environment of its own."""
