"""Every command with its stage and what it does in a sentence, as `offpref --help` lists them.

The list fits on a screen of 80 columns and 24 lines, the line of the next command included.
"""

from collections.abc import Mapping

STAGES: Mapping[str, Mapping[str, str]] = {
    "Data": {
        "add": "Put pairs, lists or labels into a store.",
        "select": "Make pairs of ranked lists.",
    },
    "Score": {
        "score": "Write the reference's scores, once (stage one).",
        "reward": "Write the rewards of another objective.",
        "train-reward": "Train a reward model on pairs.",
    },
    "Train": {
        "sft": "Fine-tune on demonstrations or chosen completions.",
        "train": "Train a policy from stored scores (stage two).",
        "sweep": "Train every run that a file names.",
        "soup": "Average the weights of policies.",
    },
    "Ask": {
        "evaluate": "Sample from a policy and measure it.",
        "query": "Answer a question, named or in SQL (stage three).",
        "report": "Write one HTML page of runs and pairs.",
        "export": "Write what runs measured for other tools.",
        "push-policy": "Write a policy's model card; push it if asked to.",
    },
    "More": {
        "store": "List, label, put away, verify or compact.",
        "losses": "List losses and the options that act on them.",
        "config": "Translate a configuration of another tool.",
        "completion": "Print what completes commands in your shell.",
        "demo": "Run every stage on a small world, offline.",
    },
}

SENTENCES: Mapping[str, str] = {
    name: sentence for commands in STAGES.values() for name, sentence in commands.items()
}
