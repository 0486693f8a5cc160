"""Baselines on the shared features: a linear model for each kind of outcome."""
