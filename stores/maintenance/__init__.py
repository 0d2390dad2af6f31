"""Maintenance of a store: verify, compact, garbage, repair, listing."""
