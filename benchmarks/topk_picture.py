"""Draw what the top k misses of the KL, from the results of the benchmark `tdpo`.

python benchmarks/topk_picture.py RESULTS.json PICTURE.png
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter


def main() -> None:
    """Draw one line for each policy, and the mass outside the top k."""
    results, picture = map(Path, sys.argv[1:])
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    found = json.loads(results.read_text())["topk_error"]["by_learning_rate"]
    for rate, policy in found.items():
        ks = [int(k) for k in policy["by_k"]]
        missed = [each["share_missed"] for each in policy["by_k"].values()]
        label = f"missed; KL {policy['exact']:.3f} nats per token (learning rate {rate})"
        axes.plot(ks, missed, marker="o", label=label)
    rest = [each["mean_rest"] for each in policy["by_k"].values()]
    axes.plot(ks, rest, color="0.55", linestyle="--", marker=".", label="probability outside the k")
    axes.set(xscale="log", yscale="log", xlabel="k", ylabel="share of the KL missed")
    axes.set_xticks(ks, map(str, ks))
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
