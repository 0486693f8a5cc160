"""From MEDS records to token stores. Importing this package imports nothing heavy; parts load by name."""
