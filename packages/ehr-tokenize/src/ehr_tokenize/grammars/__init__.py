"""How events become tokens."""
