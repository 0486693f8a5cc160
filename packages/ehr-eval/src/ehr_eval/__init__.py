"""Clinical tasks, labels, count-and-value baselines, metrics with intervals, and the report. No torch anywhere."""
