"""The user's files as rows of JSON: found, opened, decoded, split into rows, asked in SQL."""

from .finding import skipped_files, source_files
from .opening import identity, source_hash
from .reading import read_rows
from .rows import ROWS, columns_of, id_lists, row_names, unreadable_reason
from .source_file import SourceFile

__all__ = [
    "ROWS",
    "SourceFile",
    "columns_of",
    "id_lists",
    "identity",
    "read_rows",
    "row_names",
    "skipped_files",
    "source_files",
    "source_hash",
    "unreadable_reason",
]
