"""Pair sets: from files to tokenised sequences and pairs in the store, and the order of steps."""
