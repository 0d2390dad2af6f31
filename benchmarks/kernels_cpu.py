"""Time the kernels on this machine's CPU in one process, alternating with a plain product and TRL.

    python benchmarks/kernels_cpu.py ROUNDS

Prints JSON: median seconds by operation, and their ratios to one ``torch.mm`` of the same shape.
With OMP_NUM_THREADS=1 it is processor time, on which other work on the machine has little effect.
Every operation runs once per round, so that other load on the machine affects all of them equally.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from offpref.kernels.distributions import HiddenReference
from offpref.kernels.head import OutputHead
from offpref.kernels.linear import linear_token_scores
from offpref.pipeline.models.devices import keep_freed_memory

NUM_TOKENS, HIDDEN_SIZE, VOCAB_SIZE = 2048, 512, 32_000
TRL_CHUNK = 32_768  # what its trainers pass
EVERYTHING = ("token_logps", "forward_kl", "entropy")


class World:
    """A policy's and a reference's hidden states and heads, and gradients from above."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, size: float = 1.0) -> Tensor:
            return size * torch.randn(shape, generator=generator)

        self.ref_hidden = draw(NUM_TOKENS, HIDDEN_SIZE)
        self.ref_weight = draw(VOCAB_SIZE, HIDDEN_SIZE, size=HIDDEN_SIZE**-0.5)
        drift = 0.1 * draw(NUM_TOKENS, HIDDEN_SIZE)
        self.hidden = (self.ref_hidden + drift).requires_grad_()
        self.weight = (self.ref_weight + 0.1 * self.ref_weight.roll(1, 0)).requires_grad_()
        self.labels = torch.randint(VOCAB_SIZE, (NUM_TOKENS,), generator=generator)
        self.upstream = [draw(NUM_TOKENS) for _ in EVERYTHING]
        self.product = torch.empty(NUM_TOKENS, VOCAB_SIZE)

    def plain_product(self) -> None:
        torch.mm(self.hidden.detach(), self.weight.detach().T, out=self.product)

    def ours(self, want: tuple[str, ...]) -> dict[str, Tensor]:
        reference = HiddenReference(hidden=self.ref_hidden, head=OutputHead(weight=self.ref_weight))
        head = OutputHead(weight=self.weight)
        return linear_token_scores(self.hidden, head, self.labels, reference, want=want)

    def trl_logps(self, outputs: tuple[str, ...] = ()) -> tuple[Tensor, ...]:
        return ChunkedLogProbFunction.apply(
            self.hidden, self.weight, None, self.labels, 1.0, TRL_CHUNK, None, 1.0, outputs
        )

    def trl_kl(self) -> Tensor:
        return ChunkedDivergenceFunction.apply(
            self.hidden, self.weight, None, self.ref_hidden, self.ref_weight, None, 0.0
        )[0]

    def backward(self, *outputs: Tensor, upstream: list[Tensor] | None = None) -> None:
        grads = (upstream or self.upstream)[: len(outputs)]
        torch.autograd.grad(list(outputs), [self.hidden, self.weight], grads)


def operations(world: World) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    logps, kl = world.upstream[:2]

    def with_both() -> None:
        scores = world.ours(EVERYTHING)
        world.backward(scores["token_logps"], scores["forward_kl"])

    def with_all() -> None:
        world.backward(*world.ours(EVERYTHING).values())

    def tdpo1() -> None:
        scores = world.ours(EVERYTHING)
        world.backward(scores["token_logps"], scores["forward_kl"], upstream=[logps, logps])

    def trl_together() -> None:
        world.backward(world.trl_logps(("entropy",))[0], world.trl_kl(), upstream=[logps, kl])

    def forward_only(run: Callable[[], object]) -> Callable[[], None]:
        def without_graph() -> None:
            with torch.no_grad():
                run()

        return without_graph

    return {
        "product": world.plain_product,
        "logps_forward": forward_only(lambda: world.ours(EVERYTHING[:1])),
        "logps": lambda: world.backward(*world.ours(EVERYTHING[:1]).values()),
        "together_forward": forward_only(lambda: world.ours(EVERYTHING)),
        "together": with_both,
        "together_entropy_gradient": with_all,
        "tdpo1": tdpo1,
        "trl_logps_forward": forward_only(world.trl_logps),
        "trl_logps": lambda: world.backward(world.trl_logps()[0]),
        "trl_together": trl_together,
    }


def largest_differences(world: World) -> dict[str, float]:
    """Return the largest difference between both sides, in nats."""
    with torch.no_grad():
        ours = world.ours(EVERYTHING)
        theirs = {"token_logps": world.trl_logps()[0], "forward_kl": world.trl_kl()}
    return {name: float((ours[name] - theirs[name]).abs().max()) for name in theirs}


def main() -> None:
    """Measure and print."""
    num_rounds = int(sys.argv[1])
    is_single = torch.get_num_threads() == 1
    clock = time.process_time if is_single else time.perf_counter
    keep_freed_memory()  # as offpref train does; both sides gain
    world = World()
    timed = operations(world)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(num_rounds + 1):
        for name, run in timed.items():
            start = clock()
            run()
            if number:  # the first round warms up
                seconds[name].append(clock() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = {name: min(values) for name, values in seconds.items()}
    found = {
        "num_tokens": NUM_TOKENS,
        "hidden_size": HIDDEN_SIZE,
        "vocab_size": VOCAB_SIZE,
        "rounds": num_rounds,
        "num_threads": torch.get_num_threads(),
        "clock": clock.__name__,
        "seconds": medians,
        "fastest_seconds": fastest,
        "ratio_to_product": {n: s / medians["product"] for n, s in medians.items()},
        "fastest_ratio_to_product": {n: s / fastest["product"] for n, s in fastest.items()},
        "ratio_to_logps": {
            name: medians[name] / medians["logps"]
            for name in ("together", "together_entropy_gradient", "tdpo1")
        },
        "trl_over_ours": {
            "logps_forward": medians["trl_logps_forward"] / medians["logps_forward"],
            "logps": medians["trl_logps"] / medians["logps"],
            "together": medians["trl_together"] / medians["together"],
        },
        "largest_differences": largest_differences(world),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
