"""The losses of preference optimisation, of pair scores, and their registry."""
