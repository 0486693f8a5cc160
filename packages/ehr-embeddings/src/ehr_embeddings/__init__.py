"""A vector for every code of a vocabulary: read from files, or learnt from co-occurrence."""
