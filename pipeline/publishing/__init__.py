"""A trained policy for others: its model card, and the way to the Hub."""
