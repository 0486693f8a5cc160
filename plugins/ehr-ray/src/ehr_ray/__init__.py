"""Ray as an executor of the ehr workbench."""
