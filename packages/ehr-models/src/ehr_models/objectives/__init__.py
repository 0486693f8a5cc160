"""Objectives: a loss, as sum and count, with the head that it needs."""
