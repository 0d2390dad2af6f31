"""Measure the kernels on a GPU, as shares of a copy and of a product measured in the same run.

    python benchmarks/kernels_gpu.py [--dry-run] [--tokens N] [--hidden-size H] [--vocab-size V]

Each time is the median of 50 launches after 10, with the second-level cache flushed before each.
Bandwidth is useful bytes over time, as a share of a copy's; TFLOP/s as a share of a product's;
memory the peak above inputs and outputs. torch.compile, Liger and TRL run beside them where they
import. Results go to benchmarks/results/<device>.json. ``--dry-run`` runs every step once on a CPU,
with tiny sizes and without writing anything: its numbers mean nothing.
"""

import argparse
import importlib
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from offpref.kernels.distributions import HiddenReference
from offpref.kernels.head import OutputHead
from offpref.kernels.linear import linear_token_scores
from offpref.kernels.logits import token_scores

RESULTS = Path(__file__).parent / "results"
NUM_WARM_UP, NUM_TIMED = 10, 50
FLUSH_BYTES = 256 << 20  # more than any second-level cache


class Sizes(NamedTuple):
    """Tokens, hidden size and vocabulary."""

    num_tokens: int
    hidden_size: int
    vocab_size: int


class Operation(NamedTuple):
    """Something to time, and what it should have moved and computed."""

    name: str
    run: Callable[[], object]
    num_bytes: float
    num_flops: float


class Clock:
    """Times a function on a device."""

    def __init__(self, device: torch.device, *, is_dry: bool) -> None:
        self._is_dry = is_dry
        self._flush = torch.empty(0 if is_dry else FLUSH_BYTES, dtype=torch.int8, device=device)

    def milliseconds(self, run: Callable[[], object]) -> float:
        """Return the median time of a call."""
        if self._is_dry:
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)
        times = []
        for number in range(NUM_WARM_UP + NUM_TIMED):
            self._flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if number >= NUM_WARM_UP:
                times.append(start.elapsed_time(end))
        return statistics.median(times)

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Return the most memory that a call needs beyond what is there."""
        if self._is_dry:
            run()
            return 0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def draw(*shape: int, device: torch.device, size: float = 1.0) -> Tensor:
    """Return bfloat16 noise."""
    return (size * torch.randn(shape, device=device)).to(torch.bfloat16)


def denominators(sizes: Sizes, device: torch.device) -> Iterator[Operation]:
    """Yield a copy of the logits and the product that makes them."""
    num_tokens, hidden_size, vocab_size = sizes
    source = draw(num_tokens, vocab_size, device=device)
    target = torch.empty_like(source)
    yield Operation("copy", lambda: target.copy_(source), 4.0 * source.numel(), 0)
    hidden, weight = (
        draw(n, hidden_size, device=device) for n in (num_tokens, vocab_size)
    )  # fmt: skip
    flops = 2.0 * num_tokens * hidden_size * vocab_size
    yield Operation("product", lambda: torch.mm(hidden, weight.T, out=target), 0, flops)


def on_logits(sizes: Sizes, device: torch.device) -> Iterator[Operation]:
    """Yield (a) and (b), forward and backward, and what torch.compile makes of (a)."""
    num_tokens, _, vocab_size = sizes
    logits = draw(num_tokens, vocab_size, device=device, size=3.0).requires_grad_()
    labels = torch.randint(vocab_size, (num_tokens,), device=device)
    one_pass = 2.0 * num_tokens * vocab_size
    grad = torch.randn(num_tokens, device=device)

    def differentiated(scores: dict[str, Tensor]) -> Callable[[], object]:
        outputs = list(scores.values())
        return lambda: torch.autograd.grad(
            outputs, logits, [grad] * len(outputs), retain_graph=True
        )

    want = ("token_logps", "entropy")
    yield Operation("a forward", lambda: token_scores(logits, labels, want=want), one_pass, 0)
    scores = token_scores(logits, labels, want=want)
    yield Operation("a backward", differentiated(scores), 2 * one_pass, 0)
    compiled = torch.compile(plain_scores) if device.type == "cuda" else plain_scores
    yield Operation("a forward, torch.compile", lambda: compiled(logits, labels), one_pass, 0)
    outputs = compiled(logits, labels)
    yield Operation("a backward, torch.compile", differentiated(outputs), 2 * one_pass, 0)
    del scores, outputs
    ref_logits = draw(num_tokens, vocab_size, device=device, size=3.0)
    want = ("token_logps", "forward_kl", "entropy")

    def both() -> dict[str, Tensor]:
        return token_scores(logits, labels, ref_logits, want=want)

    yield Operation("b forward", both, 2 * one_pass, 0)
    yield Operation("b backward", differentiated(both()), 3 * one_pass, 0)


def plain_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return log-probs and entropy as one writes them in torch."""
    logps = torch.log_softmax(logits.float(), -1)
    return {
        "token_logps": logps.gather(-1, labels[:, None]).squeeze(-1),
        "entropy": -(logps.exp() * logps).sum(-1),
    }


def on_hidden_states(sizes: Sizes, device: torch.device) -> Iterator[Operation]:
    """Yield (c), and what Liger and TRL have for it."""
    num_tokens, hidden_size, vocab_size = sizes
    hidden = draw(num_tokens, hidden_size, device=device).requires_grad_()
    ref_hidden = draw(num_tokens, hidden_size, device=device)
    weight, ref_weight = (
        draw(vocab_size, hidden_size, device=device, size=hidden_size**-0.5) for _ in range(2)
    )
    weight.requires_grad_()
    labels = torch.randint(vocab_size, (num_tokens,), device=device)
    reference = HiddenReference(hidden=ref_hidden, head=OutputHead(weight=ref_weight))
    grad = torch.randn(num_tokens, device=device)
    flops = 2.0 * num_tokens * hidden_size * vocab_size

    def scores(*want: str) -> list[Tensor]:
        head = OutputHead(weight=weight)
        return list(linear_token_scores(hidden, head, labels, reference, want=want).values())

    def trained(outputs: list[Tensor], *factors: float) -> None:
        grads = [factor * grad for factor in factors]
        torch.autograd.grad(outputs[: len(grads)], [hidden, weight], grads)

    def without_graph() -> None:
        with torch.no_grad():
            scores("token_logps")

    kl = ("token_logps", "forward_kl", "entropy")
    yield Operation("c logps forward", without_graph, 0, flops)
    yield Operation("c logps", lambda: trained(scores("token_logps"), 1.0), 0, 4 * flops)
    yield Operation("c kl", lambda: trained(scores(*kl), 1.0, 0.5), 0, 6 * flops)
    yield Operation("c tdpo1", lambda: trained(scores(*kl), 1.0, 1.0), 0, 5 * flops)
    yield from _others(hidden, weight, labels, grad, flops)


def _others(
    hidden: Tensor, weight: Tensor, labels: Tensor, grad: Tensor, flops: float
) -> Iterator[Operation]:
    trl = _imported("trl.kernels")
    if trl is not None:

        def with_trl() -> None:
            logps = trl.ChunkedLogProbFunction.apply(
                hidden, weight, None, labels, 1.0, 32_768, None, 1.0, ()
            )[0]
            torch.autograd.grad(logps, [hidden, weight], grad.to(logps.dtype))

        yield Operation("c logps, TRL", with_trl, 0, 4 * flops)
    liger = _imported("liger_kernel.transformers")
    if liger is not None and hidden.is_cuda:
        loss = liger.LigerFusedLinearCrossEntropyLoss()
        yield Operation(
            "c mean cross-entropy, Liger",  # a sum, without a gradient per token
            lambda: torch.autograd.grad(loss(weight, hidden, labels), [hidden, weight]),
            0, 3 * flops,
        )  # fmt: skip


def _imported(name: str) -> object | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def measure(sizes: Sizes, device: torch.device, *, is_dry: bool) -> dict[str, object]:
    """Return times, rates, shares and memory of every operation."""
    clock = Clock(device, is_dry=is_dry)
    rates: dict[str, float] = {}
    found: dict[str, dict[str, float]] = {}
    for part in (denominators, on_logits, on_hidden_states):
        for operation in part(sizes, device):
            seconds = clock.milliseconds(operation.run) / 1e3
            row = {"milliseconds": 1e3 * seconds, "peak_bytes": clock.peak_bytes(operation.run)}
            for unit, amount, whole in (
                ("gigabytes_per_second", operation.num_bytes / 1e9, "copy"),
                ("teraflops", operation.num_flops / 1e12, "product"),
            ):
                if amount:
                    row[unit] = rates[operation.name] = amount / seconds
                    row[f"share_of_{whole}"] = row[unit] / rates[whole]
            found[operation.name] = row
    return {"sizes": sizes._asdict(), "torch": torch.__version__, "operations": found}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU, nothing written")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--vocab-size", type=int, default=128_256)
    given = parser.parse_args()
    if given.dry_run:
        found = measure(Sizes(3, 8, 50), torch.device("cpu"), is_dry=True)
        print(json.dumps(found, indent=2))
        return
    if not torch.cuda.is_available():
        raise SystemExit("bench-gpu needs a CUDA device, and torch finds none; see --dry-run")
    sizes = Sizes(given.tokens, given.hidden_size, given.vocab_size)
    found = measure(sizes, torch.device("cuda"), is_dry=False)
    text = json.dumps(found, indent=2)
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
