"""Predictors: a run and labels to predictions."""
