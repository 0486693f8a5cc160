"""What is learnt from train: quantiles, vocabularies, and what a shard has to say for them."""
