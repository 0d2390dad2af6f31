"""What the name of a file says: its format, its compression and its split.

A split is taken from a name as the Hugging Face Hub writes it, and never renamed:

    data/train-00000-of-00002.parquet     train; also when this file alone is given
    test.jsonl, test-easy.jsonl, test_1.jsonl, test/a.csv, test/en/a.csv     test
    train_prefs.parquet                   train_prefs
    data-00000-of-00002.arrow, a.jsonl    None
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from offpref.stores.errors import SourceError

FORMATS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
    ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
COMPRESSIONS = (".bz2", ".gz", ".xz", ".zst")
ARCHIVES = {".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"}

NUMBERED = re.compile(r"(?P<split>.+)-\d{5,}-of-\d{5,}(-\w+)?")
SPLIT = re.compile(
    r"(?P<split>(?P<word>training|train|testing|test|validation|valid|val|dev|evaluation|eval)"
    r"(?P<more>_\w+)?)([-.].*)?",
    re.IGNORECASE,
)
NO_SPLITS = {"data", "part", "shard"}  # what files are numbered as that belong to no split


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file of preference data."""

    address: str
    """Path or URL, as given or as found in the folder that was given."""

    format: str
    """``json``, ``parquet``, ``csv`` or ``arrow``."""

    compression: str | None
    """``.bz2``, ``.gz``, ``.xz``, ``.zst`` or None."""

    split: str | None = None
    """As the name of the file or of a folder says, ``train`` for instance; None if none does."""

    @property
    def local_path(self) -> Path | None:
        """Return the path of a local file, None for a remote one."""
        return None if "://" in self.address else Path(self.address)

    @property
    def ending(self) -> str:
        """Return the ending that says the format, in small letters: ``.tsv``."""
        return _endings(self.address)[-1 if self.compression is None else -2]


def named_file(address: str, inside: str | None = None) -> SourceFile:
    """Return what the name of a file says.

    Args:
        address: Path or URL.
        inside: The file's name below the folder that was given, with ``/``; None for a file that
            was given itself.

    Raises:
        SourceError: If the ending is not one that this version reads.
    """
    endings = _endings(address)
    compression = endings[-1] if endings and endings[-1] in COMPRESSIONS else None
    kept = endings[:-1] if compression else endings
    if not kept or kept[-1] not in FORMATS:
        if ARCHIVES.intersection(endings[-2:]):
            raise SourceError(
                f"{address}: expected a file of rows, got an archive; unpack it and give its folder"
            )
        raise SourceError(
            f"{address}: expected a file ending in {', '.join(FORMATS)}, "
            f"also with {', '.join(COMPRESSIONS[:-1])} or {COMPRESSIONS[-1]}"
        )
    num_characters = len(kept[-1]) + len(compression or "")
    stem = Path(_path_of(address)).name[:-num_characters]
    folders = () if inside is None else PurePosixPath(inside).parts[:-1]
    split = _numbered_split(stem)
    if split is None and inside is not None:
        split = _first_split((stem, *reversed(folders)))
    return SourceFile(
        address=address, format=FORMATS[kept[-1]], compression=compression, split=split
    )


def looks_like_data(name: str) -> bool:
    """Whether a name has the ending of a format or of an archive, whatever comes behind it."""
    return any(ending in FORMATS or ending in ARCHIVES for ending in _endings(name))


def _numbered_split(stem: str) -> str | None:
    found = NUMBERED.fullmatch(stem)
    if found is None or found["split"].lower() in NO_SPLITS:
        return None
    # `datasets` writes the name of a dataset in front of its split, which has no hyphen.
    last = found["split"].rpartition("-")[2]
    return last if SPLIT.fullmatch(last) else found["split"]


def _first_split(names: Sequence[str]) -> str | None:
    for name in names:
        if found := SPLIT.fullmatch(name):
            is_number = (found["more"] or "")[1:].isdigit()
            return found["word"] if is_number else found["split"]
    return None


def _path_of(address: str) -> str:
    """Return an address without the query of a URL; a ``?`` belongs to the name of a local file."""
    return address.split("?")[0] if "://" in address else address


def _endings(address: str) -> list[str]:
    return [suffix.lower() for suffix in Path(_path_of(address)).suffixes]
