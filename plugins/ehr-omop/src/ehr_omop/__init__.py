"""OMOP CDM tables to MEDS."""
