"""The presets below ``conf/``; what they set is the tokenizer ``ethos`` of ehr-tokenize."""
