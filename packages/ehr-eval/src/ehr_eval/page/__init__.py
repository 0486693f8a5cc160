"""The report: one HTML file with the numbers, the curves, and where they come from."""
