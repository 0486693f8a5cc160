"""Configurable timelines of hospitalizations, for the ehr workbench."""
