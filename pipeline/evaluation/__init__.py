"""Policies sampled from and measured."""
