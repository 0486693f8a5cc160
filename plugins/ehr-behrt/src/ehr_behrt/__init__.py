"""BEHRT for the ehr workbench: visit sequences with age, visit and segment."""
