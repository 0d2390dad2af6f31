"""Small tokenizers of every kind that people have, trained on a few sentences."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Once upon a time, there was a little girl named Lily. It's 42 (yes)!\n\nShe said: hello!",
    "It is four. I am sorry. na\u00efve caf\u00e9 \u65e5\u672c",
    "Human: say 1 or 23. Assistant: the answer is 42.\n- one\n- two\n",
] * 20
KINDS = (
    "byte-level", "byte-level with add_prefix_space", "metaspace first", "metaspace always",
    "metaspace never", "prepend normalizer", "unigram", "character", "wordpiece",
)  # fmt: skip
EXACT = KINDS[:-1]
"""All whose ids decode to their text."""


def write_kind(folder: Path, kind: str) -> Path:
    """Write a tokenizer of a kind, whose end of sequence is ``</s>``; it adds no other token."""
    tokenizer, trainer = _untrained(kind)
    tokenizer.train_from_iterator(CORPUS, trainer)
    parts = json.loads(tokenizer.to_str())
    vocabulary = parts["model"].get("vocab")
    if parts["model"].get("byte_fallback") and isinstance(vocabulary, dict):
        for byte in range(256):
            vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)), eos_token="</s>",
        unk_token=None if kind.startswith("byte-level") else "<unk>",
    )  # fmt: skip
    fast.save_pretrained(folder)
    return folder


def _untrained(kind: str) -> tuple[Tokenizer, object]:
    special = ["</s>"] if kind.startswith("byte-level") else ["<unk>", "</s>"]
    more = {"special_tokens": special, "show_progress": False}
    if kind.startswith("byte-level"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="prefix" in kind)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        return tokenizer, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, **more)
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        return tokenizer, trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", **more)
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer, trainers.WordPieceTrainer(vocab_size=300, **more)
    if kind == "character":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.decoder = decoders.Fuse()
        return tokenizer, trainers.BpeTrainer(vocab_size=0, **more)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if kind == "prepend normalizer":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 1, 0)]
        )  # fmt: skip
    else:
        scheme = kind.split()[1]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        metaspace = decoders.Metaspace(prepend_scheme=scheme)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace])
    return tokenizer, trainers.BpeTrainer(vocab_size=400, **more)
