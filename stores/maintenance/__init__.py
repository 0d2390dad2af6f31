"""What keeps a store in order: verify, compact, garbage, repair, listing."""
