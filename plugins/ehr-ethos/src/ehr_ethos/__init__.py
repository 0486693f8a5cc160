"""ETHOS and EHR_FM on MIMIC-IV: the tokenizer preset ``mimic_iv``."""
