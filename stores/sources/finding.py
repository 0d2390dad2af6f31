"""Find the files of rows at an address, and say which of its files are not rows.

A folder is read with all folders in it, by name. Not read are hidden files, what libraries keep
beside data (``BOOKKEEPING``), and in a folder that ``datasets`` has saved whatever its own list of
files leaves out. A file that is given itself is always read.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from offpref.stores.errors import SourceError

from .opening import remote
from .source_file import FORMATS, SourceFile, looks_like_data, named_file

STATE, SPLITS = "state.json", "dataset_dict.json"
BOOKKEEPING = {
    STATE, SPLITS, "dataset_info.json", "dataset_infos.json", "croissant.json",
    "adapter_config.json", "added_tokens.json", "all_results.json", "chat_template.json",
    "config.json", "eval_results.json", "generation_config.json", "preprocessor_config.json",
    "processor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    "train_results.json", "trainer_state.json", "vocab.json",
}  # fmt: skip
"""What datasets, models and tokenizers keep beside data."""
TEXTS_FOR_PEOPLE = {"changelog", "citation", "license", "licence", "notice", "readme"}
MAX_NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    """A folder that was given: what is in it and how to get there."""

    address: str
    names: tuple[str, ...]
    """Of all files, from the folder on, with ``/``, in order."""
    join: Callable[[str], str]
    """Gives the address of a file by its name."""
    read: Callable[[str], bytes]
    """Gives the bytes of a file by its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Saved:
    """What the state files that ``datasets`` writes say about the files beside and below them."""

    files: Mapping[str, frozenset[str]]
    """The files of rows, by folder."""
    folders: Mapping[str, frozenset[str]]
    """The folders of the splits, by folder."""

    def leaves_out(self, name: str) -> bool:
        """Whether a file is none of those that a state file above or beside it lists."""
        path = PurePosixPath(name)
        beside = str(path.parent)
        if beside in self.files and path.name not in self.files[beside]:
            return True
        return any(
            str(above) in self.folders
            and path.relative_to(above).parts[0] not in self.folders[str(above)]
            for above in path.parents
        )

    def split_of(self, name: str) -> str | None:
        """Return the name of the split whose folder holds a file; None if none does."""
        path = PurePosixPath(name)
        for above in path.parents:
            if str(above) in self.folders:
                return path.relative_to(above).parts[0]
        return None


def source_files(address: str) -> list[SourceFile]:
    """Return the files at ``address``: itself, or all below that folder that can be read, by name.

    Raises:
        SourceError: If nothing is there, or nothing that this version reads.
    """
    found = _at(address)
    if isinstance(found, SourceFile):
        return [found]
    files, skipped = _sorted_out(found)
    if not files:
        raise SourceError(
            f"{address}: expected files ending in {', '.join(FORMATS)}, found none"
            + (f"; skipped: {_few(skipped)}" if skipped else "")
        )
    return files


def skipped_files(address: str) -> list[str]:
    """Return the files below a folder that look like data and are not read, by name.

    Args:
        address: As given to `source_files`; a file has none.
    """
    found = _at(address)
    return [] if isinstance(found, SourceFile) else _sorted_out(found)[1]


def _at(address: str) -> SourceFile | _Folder:
    """Return what is at an address."""
    if "://" in address:
        return _at_url(address)
    path = Path(address)
    if path.is_dir():
        return _local_folder(address, path)
    if path.is_file():
        return named_file(address)
    what = "something else" if path.exists() else "nothing there"
    raise SourceError(f"{address}: expected a file or a folder of files, found {what}")


def _at_url(address: str) -> SourceFile | _Folder:
    with remote(address) as (filesystem, path):
        if not filesystem.isdir(path):
            if not filesystem.exists(path):
                raise FileNotFoundError("found nothing there")
            return named_file(address)
        root = str(path).rstrip("/")
        if "file" in _protocols(filesystem):  # fsspec would walk in circles along links
            names = sorted(_local_names(address, Path(root)), key=_in_order)
        else:
            names = sorted(
                (_below(root, str(each)) for each in filesystem.find(path)), key=_in_order
            )

    def join(name: str) -> str:
        return str(filesystem.unstrip_protocol(f"{root}/{name}"))

    def read(name: str) -> bytes:
        with remote(join(name)) as (same, file):
            return bytes(same.cat_file(file))

    return _Folder(address=address, names=tuple(names), join=join, read=read)


def _below(root: str, path: str) -> str:
    """Return the name of a remote file from the folder ``root`` on."""
    if not path.startswith(f"{root}/"):  # hf:// quotes the revision that the address may have
        root, path = unquote(root), unquote(path)
    return path.removeprefix(f"{root}/")


def _protocols(filesystem: Any) -> tuple[str, ...]:
    found = filesystem.protocol
    return (found,) if isinstance(found, str) else tuple(found)


def _local_folder(address: str, path: Path) -> _Folder:
    return _Folder(
        address=address,
        names=tuple(sorted(_local_names(address, path), key=_in_order)),
        join=lambda name: str(path / name),
        read=lambda name: (path / name).read_bytes(),
    )


def _in_order(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts


def _local_names(address: str, root: Path) -> Iterator[str]:
    """Yield the files below a folder; a link is followed unless it leads back to where it is.

    Raises:
        SourceError: If a folder cannot be listed.
    """
    above: dict[str, frozenset[str]] = {}  # the real folders on the way to a folder

    def refused(error: OSError) -> None:
        raise SourceError(f"{address}: a folder in it cannot be read: {error}") from error

    for folder, folders, files in os.walk(root, onerror=refused, followlinks=True):
        real = os.path.realpath(folder)
        way = above.pop(folder, frozenset()) | {real}
        folders[:] = [each for each in folders if os.path.realpath(Path(folder, each)) not in way]
        above |= {os.path.join(folder, each): way for each in folders}
        for name in files:
            yield Path(folder, name).relative_to(root).as_posix()


def _sorted_out(folder: _Folder) -> tuple[list[SourceFile], list[str]]:
    """Return the files of rows, and the others that look like data.

    Raises:
        SourceError: If a link leads nowhere, or a state file lists what is not there.
    """
    saved = _saved(folder)
    files, skipped = [], []
    for name in folder.names:
        address = folder.join(name)
        if not looks_like_data(name):
            continue
        if _is_bookkeeping(name) or saved.leaves_out(name):
            skipped.append(name)
            continue
        try:
            file = named_file(address, inside=name)
        except SourceError:
            skipped.append(name)  # an archive beside the data must not stop the command
            continue
        if file.local_path is not None and not file.local_path.is_file():
            raise SourceError(f"{address}: expected a file, found a link to nothing or no file")
        split = saved.split_of(name)
        files.append(file if split is None else _with_split(file, split))
    return files, skipped


def _with_split(file: SourceFile, split: str) -> SourceFile:
    return SourceFile(
        address=file.address, format=file.format, compression=file.compression, split=split
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _is_bookkeeping(name: str) -> bool:
    """Whether a file is hidden, or one that is kept beside data."""
    last = PurePosixPath(name).name.lower()
    return (
        _is_hidden(name)
        or last in BOOKKEEPING
        or last.endswith(".index.json")
        or last.split(".")[0] in TEXTS_FOR_PEOPLE
        or (last.startswith("cache-") and last.endswith(".arrow"))
    )


def _saved(folder: _Folder) -> _Saved:
    """Return what the state files in a folder say.

    Raises:
        SourceError: If one lists a file that is not there, or an order of its own.
    """
    files: dict[str, frozenset[str]] = {}
    folders: dict[str, frozenset[str]] = {}
    names = set(folder.names)
    for name in folder.names:
        path = PurePosixPath(name)
        if _is_hidden(name) or path.name not in (STATE, SPLITS):
            continue
        state = _state(folder, name)
        if path.name == SPLITS and isinstance(state.get("splits"), list):
            folders[str(path.parent)] = frozenset(map(str, state["splits"]))
        if path.name == STATE and isinstance(state.get("_data_files"), list):
            if state.get("_indices_files") or state.get("_indices_data_files"):
                raise SourceError(
                    f"{folder.join(name)}: expected a dataset saved row by row, got one with an "
                    "order of its own over the rows; call flatten_indices() and save it again"
                )
            listed = frozenset(_filenames(state["_data_files"]))
            missing = [each for each in sorted(listed) if str(path.parent / each) not in names]
            if missing:
                raise SourceError(
                    f"{folder.join(name)}: expected the files that it lists, "
                    f"{_few(missing)} not found"
                )
            files[str(path.parent)] = listed
    return _Saved(files=files, folders=folders)


def _state(folder: _Folder, name: str) -> dict[str, Any]:
    """Return a state file's members; none if it is not one of ``datasets``."""
    try:
        found = json.loads(folder.read(name))
    except ValueError:
        return {}
    except OSError as error:
        raise SourceError(f"{folder.join(name)}: cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _filenames(listed: Iterable[object]) -> Iterator[str]:
    for each in listed:
        if isinstance(each, Mapping) and "filename" in each:
            yield str(each["filename"])


def _few(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
