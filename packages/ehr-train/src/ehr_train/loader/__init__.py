"""From a token store to batches: timelines, windows and samples, packed rows, and steps made ahead of time."""
