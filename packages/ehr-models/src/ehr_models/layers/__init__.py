"""The parts that networks are put together from."""
