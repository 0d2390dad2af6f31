"""Sentiment of a text by the VADER lexicon, as a source of rewards: python:vader:sentiment."""

from collections.abc import Sequence
from functools import cache

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def sentiment(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return VADER's compound score of each completion, -1 to 1."""
    return [_analyzer().polarity_scores(text)["compound"] for text in completions]
