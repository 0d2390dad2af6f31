"""Margin rewards of objectives, from models, functions and columns; reward models."""
