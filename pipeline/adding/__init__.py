"""Data becomes pair sets: read, rendered, tokenised, counted, and put into the store."""
