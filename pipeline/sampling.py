"""Draw completions from a policy, reproducibly: transformers' own ``generate``, in batches.

Letters: N prompts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def sample_texts(
    model_dir: Path,
    prompts: Sequence[str],
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
) -> list[list[str]]:
    """Return ``num_samples`` completions of each prompt, as text without control tokens.

    Args:
        model_dir: A model with its tokenizer, in Hugging Face form.
        prompts: The prompts, [N].
        num_samples: Completions of each, at least 1.
        max_new_tokens: Longest completion.
        temperature: Above 0; 1 samples from the policy itself.
        seed: The same seed, prompts and batch size give the same completions.
        batch_size: Completions drawn at once.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    tokenizer.padding_side = "left"  # a completion begins right behind its prompt
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, local_files_only=True)
    model.to(device)
    repeated = [prompt for prompt in prompts for _ in range(num_samples)]
    texts: list[str] = []
    devices = [device] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(repeated), batch_size):
            batch = tokenizer(
                repeated[start : start + batch_size], return_tensors="pt", padding=True
            ).to(device)
            ids = model.generate(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
                max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            texts += tokenizer.batch_decode(
                ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True
            )
    return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]
