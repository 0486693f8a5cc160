"""ExMed-BERT for the ehr workbench: codes with age, sex, region, entity and visit."""
