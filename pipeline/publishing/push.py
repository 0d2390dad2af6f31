"""Write a policy's model card, and push the policy to the Hub if that is asked for.

Weights, configuration, tokenizer and card are all that is pushed: no optimizer state, checkpoint,
run.json, board or store. The token is the Hub's own library's affair, and is never shown.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from offpref.pipeline.models.folders import TOKENIZER_FILES
from offpref.stores.errors import ReportError, StoreWriteError
from offpref.stores.files.placing import clear_write_errors

from .card import MARK, model_card
from .facts import read_facts
from .settings import PushSettings

CARD = "README.md"
_PATTERNS = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json",
    "adapter/*.safetensors", "adapter/adapter_config.json", *TOKENIZER_FILES,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class PushSummary:
    """What was written, and what was pushed or would be."""

    card: Path
    files: tuple[str, ...]
    """Paths in the folder."""
    num_bytes: int
    address: str | None
    """Where it was pushed to; None if it was not."""


def push_policy(settings: PushSettings) -> PushSummary:
    """Write the card of a policy, and push both if that is asked for.

    Raises:
        ValueError: If huggingface_hub is needed and not installed.
        TrainingError: If the folder holds no finished run, or the store does not know it.
        StoreWriteError: If the card cannot be written, or would replace somebody's own.
        ReportError: If the Hub refuses.
    """
    if settings.push and find_spec("huggingface_hub") is None:
        raise ValueError(
            "huggingface_hub is not installed, and pushing needs it: pip install 'offpref[hub]'"
        )
    card = settings.folder / CARD
    facts = read_facts(settings)
    with clear_write_errors(card):
        is_ours = not card.exists() or MARK in card.read_text("utf-8", errors="replace")
        if not is_ours and not settings.overwrite:
            raise StoreWriteError(f"{card} is not offpref's; --overwrite replaces it")
        card.write_text(model_card(facts, settings), encoding="utf-8")
    files = _files(settings.folder)
    return PushSummary(
        card=card,
        files=tuple(files),
        num_bytes=sum((settings.folder / each).stat().st_size for each in files),
        address=_push(settings, files) if settings.push else None,
    )


def _files(folder: Path) -> list[str]:
    """Return the files that a policy is made of, and its card."""
    found = {path for pattern in (*_PATTERNS, CARD) for path in folder.glob(pattern)}
    plain = [path for path in found if path.is_file() and not path.is_symlink()]
    return sorted(path.relative_to(folder).as_posix() for path in plain)


def _push(settings: PushSettings, files: list[str]) -> str:
    """Push files, and return the address of the repository.

    Raises:
        ReportError: If the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="offpref")
    try:
        made = api.create_repo(settings.repo, private=not settings.public, exist_ok=True)
        api.upload_folder(
            repo_id=settings.repo, folder_path=settings.folder, allow_patterns=files,
            commit_message="A policy trained with offpref",
        )  # fmt: skip
    except (OSError, ValueError) as error:  # those of the Hub's library and of the network
        said = " ".join(str(error).split())
        kind = type(error).__name__
        raise ReportError(f"{settings.repo} was not pushed: {kind}: {said}") from error
    return str(made)
