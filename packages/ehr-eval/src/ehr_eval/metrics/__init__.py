"""Metrics, each for one sample and for many weighted resamples at once.

Shapes: N rows, R resamples, K classes or labels, G groups of equal prediction. A row's weight is how often a resample
drew it, so a thousand resamples need one sort instead of a thousand.
"""
