"""Training: token store to run folder, and predictions from a run."""
