"""Rewards of stories, as sources: python:vader:sentiment by the VADER lexicon, and brevity."""

from collections.abc import Sequence
from functools import cache

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def sentiment(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return VADER's compound score of each completion, -1 to 1."""
    return [_analyzer().polarity_scores(text)["compound"] for text in completions]


def brevity(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return minus the number of words of each completion."""
    return [-float(len(text.split())) for text in completions]
