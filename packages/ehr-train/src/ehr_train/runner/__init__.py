"""The runner: any MEDS dataset to a trained and evaluated model, in stages that are done once."""
