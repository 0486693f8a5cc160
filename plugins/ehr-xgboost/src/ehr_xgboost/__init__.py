"""XGBoost as a baseline of the ehr workbench."""
