"""The nearest right word for a wrong one: by its letters, or by what other tools call the thing.

People come from TRL, axolotl, LLaMA-Factory and transformers, and type their words. `ALIASES` says
what those are called here, options and values alike: a guess is only made of words that are right
where the wrong one stood.
"""

from collections.abc import Iterable, Mapping, Sequence

ALIASES: Mapping[str, Sequence[str]] = {
    # Losses
    "dpo": ("sigmoid", "train"),
    "dpo_loss": ("sigmoid",),
    "bt": ("sigmoid",),
    "cdpo": ("sigmoid",),
    "rso": ("hinge",),
    "kto_pair": ("kto",),
    "tdpo": ("tdpo2",),
    "bco": ("bco_pair",),
    "exo": ("exo_pair",),
    "nca": ("nca_pair",),
    "sppo": ("sppo_hard",),
    "apo": ("apo_zero",),
    "wpo": ("use_weighting",),
    "ld_dpo": ("ld_alpha",),
    "r_dpo": ("rdpo",),
    "robust_dpo": ("robust",),
    "listwise": ("plackett_luce",),
    "remove": ("drop",),
    # Data and models
    "model_name_or_path": ("model",),
    "model_name": ("model",),
    "base_model": ("model",),
    "policy": ("model",),
    "ref_model": ("reference",),
    "ref_model_name_or_path": ("reference",),
    "reference_model": ("reference",),
    "dataset": ("data", "pair_set"),
    "datasets": ("data", "pair_set"),
    "dataset_name": ("data", "pair_set"),
    "train_file": ("data", "pair_set"),
    "dataset_train_split": ("train_split",),
    "dataset_test_split": ("eval_split",),
    "val_set_size": ("eval_fraction",),
    "val_size": ("eval_fraction",),
    "test_split_ratio": ("eval_fraction",),
    "cutoff_len": ("max_length",),
    "sequence_len": ("max_length",),
    "max_seq_length": ("max_length",),
    "max_prompt_length": ("max_length",),
    "max_completion_length": ("max_new_tokens", "max_length"),
    "truncation_mode": ("truncation",),
    "template": ("chat_template",),
    # Losses' options
    "loss": ("loss_type",),
    "pref_loss": ("loss_type",),
    "pref_beta": ("beta",),
    "dpo_beta": ("beta",),
    "rl_beta": ("beta",),
    "tau": ("beta", "discopop_tau"),
    "dpo_label_smoothing": ("label_smoothing",),
    "cpo_alpha": ("cpo_lambda",),
    "rpo_alpha": ("loss_weights",),
    "pref_ftx": ("loss_weights",),
    "gamma": ("simpo_gamma",),
    "orpo_alpha": ("orpo_lambda",),
    "desirable_weight": ("kto_desirable_weight",),
    "undesirable_weight": ("kto_undesirable_weight",),
    # Schedule
    "lr": ("learning_rate",),
    "epochs": ("num_epochs",),
    "epoch": ("num_epochs",),
    "n_epochs": ("num_epochs",),
    "num_train_epochs": ("num_epochs",),
    "num_steps": ("max_steps",),
    "steps": ("max_steps",),
    "batch_size": ("pairs_per_step", "max_batch_tokens"),
    "train_batch_size": ("pairs_per_step",),
    "per_device_train_batch_size": ("pairs_per_step",),
    "micro_batch_size": ("max_batch_tokens",),
    "per_device_eval_batch_size": ("max_batch_tokens",),
    "gradient_accumulation_steps": ("pairs_per_step",),
    "gradient_accumulation": ("pairs_per_step",),
    "lr_scheduler": ("lr_scheduler_type",),
    "scheduler": ("lr_scheduler_type",),
    "schedule": ("lr_scheduler_type",),
    "warmup": ("warmup_ratio",),
    "max_norm": ("max_grad_norm",),
    "clip_grad_norm": ("max_grad_norm",),
    "gradient_clipping": ("max_grad_norm",),
    "random_seed": ("seed",),
    "data_seed": ("seed",),
    "cosine_with_warmup": ("cosine",),
    "cosine_annealing": ("cosine",),
    "linear_with_warmup": ("linear",),
    "warmup_constant": ("constant_with_warmup",),
    # Precision, memory, adapters
    "dtype": ("precision",),
    "torch_dtype": ("precision",),
    "bfloat16": ("bf16",),
    "fp32": ("float32",),
    "float": ("float32",),
    "full": ("float32",),
    "mixed": ("bf16-autocast",),
    "amp": ("bf16-autocast",),
    "bf16_mixed": ("bf16-autocast",),
    "gpu": ("cuda",),
    "activation_checkpointing": ("gradient_checkpointing",),
    "lora_rank": ("lora_r",),
    "rank": ("lora_r",),
    "lora_modules": ("lora_target_modules",),
    "lora_target": ("lora_target_modules",),
    "target_modules": ("lora_target_modules",),
    # Measuring, output
    "eval_steps": ("eval_every",),
    "save_steps": ("save_every",),
    "save_total_limit": ("keep",),
    "output": ("output_dir",),
    "out": ("output_dir", "output"),
    "resume_from_checkpoint": ("resume",),
    "overwrite_output_dir": ("overwrite",),
    "force": ("overwrite",),
    "logger": ("report_to",),
    "logging": ("report_to",),
    "tb": ("tensorboard",),
    # Commands
    "finetune": ("sft",),
    "fine_tune": ("sft",),
    "rm": ("train-reward",),
    "eval": ("evaluate",),
    "generate": ("evaluate",),
    "sql": ("query",),
    "ask": ("query",),
    "import": ("add",),
    "ls": ("store",),
    "merge": ("soup",),
    "push": ("push-policy",),
    "upload": ("push-policy",),
    "push_to_hub": ("push-policy",),
}
"""Words of other tools, with those that stand for them here, the likeliest first."""


def nearest_word(name: str, known: Iterable[str]) -> str | None:
    """Return the known word that was meant, as it is spelled there; None if none is similar.

    >>> nearest_word("--lr", ["--num-epochs", "--learning-rate"])
    '--learning-rate'
    >>> nearest_word("bfloat16", ["float32", "bf16"])
    'bf16'
    """
    spelled = {_plain(each): each for each in reversed(list(known))}
    word = _plain(name)
    for each in ALIASES.get(word, ()):
        if _plain(each) in spelled:
            return spelled[_plain(each)]
    from difflib import get_close_matches  # only where something is wrong

    found = get_close_matches(word, spelled, n=1)
    return spelled[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
