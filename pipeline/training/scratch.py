"""A model from scratch: random weights of a given configuration, a tokenizer trained on the data.

For experiments that want a small model of their own world; ``offpref sft`` begins from it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offpref.pipeline.adding.reading import read_sources
from offpref.pipeline.adding.settings import AddSettings
from offpref.stores.errors import ModelError, SourceError
from offpref.stores.files.placing import whole_folder, write_synced
from offpref.stores.keys import canonical_json
from offpref.stores.sources import source_files, source_hash

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
MADE_OF = "scratch.json"
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)  # every byte has a token


def make_model(
    folder: Path, config: Path, data: AddSettings, *, vocab_size: int, seed: int
) -> bool:
    """Write a model with random weights and a tokenizer trained on the data, unless it is there.

    Args:
        folder: Where to.
        config: JSON file of the configuration, ``model_type`` and sizes; vocabulary size and
            special tokens come from the tokenizer.
        data: Whose prompts and completions the tokenizer is trained on.
        vocab_size: Tokens of the tokenizer, at most; at least 259.
        seed: Of the weights.

    Returns:
        Whether it was made now.

    Raises:
        ValueError: If the vocabulary is too small.
        ModelError: If the configuration makes no model, or the folder holds another one.
        SourceError: If the data cannot be read or holds no text.
    """
    check_vocab_size(vocab_size)
    settings = _configuration(config)
    made_of = {
        "config": settings,
        "vocab_size": vocab_size,
        "seed": seed,
        "data": [source_hash(file) for address in data.data for file in source_files(address)],
        "columns": dict(data.columns),
    }
    if (folder / MADE_OF).exists():
        if json.loads((folder / MADE_OF).read_text(encoding="utf-8")) != made_of:
            raise ModelError(
                f"{folder} holds a model made from another configuration or data; "
                "name another --output-dir"
            )
        return False
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} is not empty; name another --output-dir")
    with whole_folder(folder) as partial:
        _write_tokenizer(partial, _texts(data), vocab_size)
        _write_weights(partial, settings, config, seed)
        write_synced(canonical_json(made_of).encode(), partial / MADE_OF)
    return True


def check_vocab_size(vocab_size: int) -> None:
    """Raise ValueError for a vocabulary that is too small for every byte to have a token."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size must be at least {MIN_VOCAB_SIZE}, got {vocab_size}")


def _configuration(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: expected a configuration as JSON, got: {error}") from error
    if not isinstance(found, dict) or "model_type" not in found:
        raise ModelError(f"{path}: expected a configuration with model_type and sizes")
    return found


def _texts(data: AddSettings) -> Iterator[str]:
    """Yield every prompt and completion of the data."""
    is_empty = True
    files = [file for address in data.data for file in source_files(address)]
    for found, number in read_sources(files, data):
        if found.form.value != "text":
            raise SourceError(
                f"{files[number].address}: expected prompts and completions as text, found "
                f"{found.form.value}: a model from scratch has no template"
            )
        for side in (found.prompt, found.chosen, found.rejected):
            for text in side:
                if isinstance(text, str):
                    is_empty = False
                    yield text
    if is_empty:
        raise SourceError(f"{', '.join(data.data)}: expected rows of text, found none")


def _write_tokenizer(folder: Path, texts: Iterator[str], vocab_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    pad, begin, end = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    wrapper: Any = PreTrainedTokenizerFast  # untyped
    wrapper(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end
    ).save_pretrained(folder)


def _write_weights(folder: Path, settings: dict[str, Any], path: Path, seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    given = {name: value for name, value in settings.items() if name != "model_type"}
    given |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    try:
        config = AutoConfig.for_model(settings["model_type"], **given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            make: Any = AutoModelForCausalLM  # untyped
            model = make.from_config(config)
    except (ValueError, TypeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{path}: makes no causal language model: {first}") from error
    model.save_pretrained(folder)
