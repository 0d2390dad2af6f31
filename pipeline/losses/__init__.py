"""The losses of preference optimisation: what they need, what they say of pairs, and their registry."""
