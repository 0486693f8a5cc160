"""Processes that train together: who is there, how they are started, how they end."""
