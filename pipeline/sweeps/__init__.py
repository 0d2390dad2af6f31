"""Sweeps: which runs a file names, and their processes."""
