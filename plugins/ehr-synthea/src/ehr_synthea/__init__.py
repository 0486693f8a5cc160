"""Synthea's CSV files to MEDS."""
