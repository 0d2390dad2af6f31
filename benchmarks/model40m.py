"""The benchmarks' model and pairs: a random Llama of 39.6 M parameters, and real HH pairs.

Hidden 512, 8 layers, 8 heads over 4 key-value heads, tied head, a byte-level BPE vocabulary of
32,000 trained on the text itself. Only pairs are taken whose ids do not depend on whether prompt
and completion are tokenised together, because TRL tokenises them together and offpref apart.
"""

import gzip
import json
import random
from pathlib import Path

HH = Path(__file__).parent.parent.parent / "shared" / "data" / "prefs" / "hh_harmless.jsonl.gz"
MAX_TOKENS = 1024


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Return prompt, chosen and rejected of each row whose completions are not empty."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    names = ("prompt", "chosen", "rejected")
    return [{n: r[n] for n in names} for r in rows if r["chosen"].strip() and r["rejected"].strip()]


def write_model(folder: Path, texts: list[str], *, vocab_size: int = 32_000) -> None:
    """Write the tokenizer, trained on ``texts``, and the model with random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=512, intermediate_size=1376, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=4096,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def write_world(folder: Path, *, num_pairs: int, source: Path = HH, seed: int = 0) -> Path:
    """Write model and pairs under ``folder``; return the file of pairs."""
    from transformers import AutoTokenizer

    pairs = read_pairs(source)
    model, data = folder / "model", folder / f"pairs-{num_pairs}.jsonl"
    if not (model / "model.safetensors").exists():
        write_model(model, [text for pair in pairs for text in pair.values()])
    tokenizer = AutoTokenizer.from_pretrained(model)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    def agrees(pair: dict[str, str]) -> bool:
        prompt = ids(pair["prompt"])
        sides = (pair["chosen"], pair["rejected"])
        joint = [ids(pair["prompt"] + side) for side in sides]
        apart = [prompt + ids(side) for side in sides]
        return joint == apart and max(map(len, joint)) < MAX_TOKENS and sides[0] != sides[1]

    kept = [pair for pair in pairs if agrees(pair)]
    random.Random(seed).shuffle(kept)
    data.write_text("".join(json.dumps(pair) + "\n" for pair in kept[:num_pairs]))
    return data
