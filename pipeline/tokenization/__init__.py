"""Texts and messages become token ids, and ids become texts."""
