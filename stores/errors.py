"""What a user can get wrong, or a disk can do to a store.

* OffprefError
  - StoreError
    + StoreNotFoundError
    + StoreFormatError
    + StoreWriteError
    + StoreReadError
    + UnsafeFileError
    + StoreBusyError
    + SchemaMismatchError
    + CommitCorruptError
    + ShardMissingError
    + ShardCorruptError
    + PairSetError
    + UnknownQueryError
    + QueryRefusedError
  - SettingError
  - SourceError
  - ModelError
  - TrainingError
  - ReportError

Each takes its message and nothing else, so that it survives the trip out of a worker process.
The command line prints the message as one line and leaves with exit code 1.
"""


class OffprefError(Exception):
    """What a user can mend; its message is fit to show to one."""


class StoreError(OffprefError):
    """Base class of every error of files; its message is fit to show to a user."""


class StoreNotFoundError(StoreError):
    """The folder is missing or is not a store."""


class StoreFormatError(StoreError):
    """The store was written by a version of the format that this version cannot read."""


class StoreWriteError(StoreError):
    """The file system refused a write: read-only, full, or out of quota."""


class StoreReadError(StoreError):
    """The file system refused a read (permission, an I/O error): nothing is called damaged."""


class UnsafeFileError(StoreError):
    """Below a store's root there is a link, a pipe, or anything else that is not expected there."""


class StoreBusyError(StoreError):
    """Somebody writes to the store, and what was asked could lose their rows."""


class SettingError(OffprefError):
    """An environment variable of ours has a value that it cannot have."""


class SchemaMismatchError(StoreError):
    """A table's columns differ from the schema this version writes."""


class CommitCorruptError(StoreError):
    """A commit record's bytes do not match the hash in its name."""


class ShardMissingError(StoreError):
    """A live shard is not on disk."""


class ShardCorruptError(StoreError):
    """A shard's bytes do not match the hash in its name."""


class UnknownQueryError(StoreError):
    """No query of that name is kept with the package."""


class QueryRefusedError(StoreError):
    """The SQL is not a single SELECT, or DuckDB could not run it."""


class PairSetError(StoreError):
    """The store has no such pair set, or it cannot be used as asked."""


class SourceError(OffprefError):
    """A source file cannot be read, or holds no column that this version knows."""


class ModelError(OffprefError):
    """A model or tokenizer folder is missing, incomplete, or does not fit the store."""


class TrainingError(OffprefError):
    """A run cannot continue: a loss is not finite, or what it was resumed with has changed."""


class ReportError(OffprefError):
    """A report or a picture cannot be written: its file is there, or a library is missing."""
