"""Which tokens end a completion that is sampled, as a model and its tokenizer name them.

The tokenizer names one, and the model's generation_config.json may name others; without that file
transformers takes those of config.json. They decide what is drawn, so they are part of what names
samples. The answer of transformers is remembered by the content of both files.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blake3 import blake3

from offpref.stores.keys import KEY_BYTES, canonical_json
from offpref.stores.store import Store

FILES = ("generation_config.json", "config.json")


def known_end_tokens(folder: Path, eos_token_id: int | None, store: Store) -> list[int]:
    """Return what `end_tokens` does, computed once for each state of a model's files."""
    identity: dict[str, object] = {
        "files": [_content_hash(folder / name) for name in FILES],
        "eos": eos_token_id,
        "transformers": version("transformers"),
    }
    known = store.recall_identity("end tokens", identity)
    if known is None:
        known = canonical_json(end_tokens(folder, eos_token_id))
        store.remember_identity("end tokens", identity, known)
    return list(json.loads(known))


def end_tokens(folder: Path, eos_token_id: int | None) -> list[int]:
    """Return the ids that end a completion, each once, the tokenizer's own first.

    Args:
        folder: A model in Hugging Face form.
        eos_token_id: Its tokenizer's; None if that has none.
    """
    from transformers import GenerationConfig

    load: Any = GenerationConfig.from_pretrained  # untyped
    try:
        named = load(folder, local_files_only=True).eos_token_id
    except OSError:  # no such file: what transformers' models do then
        options = {"config_file_name": "config.json", "_from_model_config": True}
        named = load(folder, local_files_only=True, **options).eos_token_id
    found = [eos_token_id, *(named if isinstance(named, list) else [named])]
    return list(dict.fromkeys(int(each) for each in found if each is not None))


def _content_hash(path: Path) -> str | None:
    return blake3(path.read_bytes()).hexdigest(KEY_BYTES) if path.is_file() else None
