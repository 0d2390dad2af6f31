"""The texts of sampled completions: what their ids spell behind a prompt."""

from collections.abc import Sequence
from typing import Any

from .anchors import AnchoredEncoder
from .token_bytes import TokenBytes


class CompletionTexts:
    """Turns ids into texts with a tokenizer of transformers.

    Decoding takes a completion for the beginning of a text: where the tokenizer puts a space before
    texts, the completion would lose its own. There, its tokens are spelled one by one.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Find out how the tokenizer decodes.

        Args:
            tokenizer: A tokenizer of transformers.
        """
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._bytes = TokenBytes(tokenizer, backend)

        def encode(texts: Sequence[str]) -> list[list[int]]:
            return [tokenizer.encode(text, add_special_tokens=False) for text in texts]

        self._is_spelled = AnchoredEncoder(encode, self._bytes.spelled).is_used

    def __call__(self, completions: Sequence[Any]) -> list[str]:  # ids, as lists or arrays
        """Return the text of each completion, without special tokens."""
        if not self._is_spelled:
            # Spaces are never cleaned up: the text shows the ids whatever the tokenizer's options.
            texts: list[str] = self._tokenizer.batch_decode(
                completions, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            return texts
        special = self._bytes.special_ids
        kept = [[int(i) for i in ids if int(i) not in special] for ids in completions]
        return [self._bytes.spelled(ids).decode(errors="replace") for ids in kept]
