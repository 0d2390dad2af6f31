"""One side of the sampling benchmark, in a process of its own; prints a line of JSON.

    python benchmarks/sample_one.py offpref|one MODEL PAIRS

``offpref`` draws as `offpref evaluate` does, in batches; ``one`` calls transformers' ``generate``
for one prompt after the other. Both draw the same number of tokens: the model never ends.
"""

import json
import sys
import time
from pathlib import Path

NUM_PROMPTS, NUM_SAMPLES, MAX_NEW_TOKENS = 16, 4, 32


def main() -> None:
    """Run one side and print what it took."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from offpref.pipeline.evaluation.sampling import Sampler
    from offpref.pipeline.evaluation.settings import SampleSettings
    from offpref.pipeline.models.devices import keep_freed_memory

    which, model_dir, pairs = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    keep_freed_memory()
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompts = [tokenizer(row["prompt"][-400:]).input_ids for row in rows[:NUM_PROMPTS]]
    repeated = [prompt for prompt in prompts for _ in range(NUM_SAMPLES)]
    settings = SampleSettings(num_samples=NUM_SAMPLES, max_new_tokens=MAX_NEW_TOKENS)
    if which == "offpref":
        sampler = Sampler(model_dir, settings, limit=None, device="cpu", precision="float32")
        started = time.perf_counter()
        drawn = [ids for ids, _ in sampler.draw(repeated, batch=0)]
    else:
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        started = time.perf_counter()
        with torch.inference_mode():
            drawn = [
                model.generate(
                    input_ids=torch.tensor([prompt]), do_sample=True, top_k=0,
                    max_new_tokens=MAX_NEW_TOKENS, pad_token_id=0, eos_token_id=None,
                )[0, len(prompt) :]
                for prompt in repeated
            ]  # fmt: skip
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "num_tokens": sum(map(len, drawn))}))


if __name__ == "__main__":
    main()
