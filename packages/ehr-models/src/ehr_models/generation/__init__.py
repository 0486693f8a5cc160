"""Trajectories: what a causal model expects after a prompt, drawn token by token and kept in a folder."""
