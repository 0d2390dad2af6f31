"""Boards that show a run to other tools, while it trains and afterwards."""
