"""Evaluation: policies are sampled from and measured."""
