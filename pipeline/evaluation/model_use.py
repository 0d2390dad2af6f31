"""How a model is run while it is evaluated: its folder, precision and device."""

from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelUse:
    """A model, and how it is run."""

    folder: Path
    """The model, in Hugging Face form."""
    precision: str
    """``float32``, ``bf16`` or ``bf16-autocast``."""
    device: str | None
    """As torch names it; None for a GPU if there is one."""
    progress: Progress
    """It is told of every batch."""
