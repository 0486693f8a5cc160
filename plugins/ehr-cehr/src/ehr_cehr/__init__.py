"""Visits with artificial time tokens, as in CEHR-BERT and CEHR-GPT, for the ehr workbench."""
