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
      . MissingError
    + UnknownQueryError
    + QueryRefusedError
  - SettingError
  - SourceError
  - ModelError
  - TrainingError
  - OwnCodeError
  - ReportError

Each takes its message and nothing else, so that it survives the trip out of a worker process.
The command line prints the message as one line and leaves with exit code 1.
"""


class OffprefError(Exception):
    """Errors that a user can fix; the message is meant for users."""


class StoreError(OffprefError):
    """Base class of errors of files; the message is meant for users."""


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
    """Somebody is writing to the store, and the command could lose their rows."""


class SettingError(OffprefError):
    """An environment variable of offpref has an invalid value."""


class SchemaMismatchError(StoreError):
    """A table's columns differ from the schema this version writes."""


class CommitCorruptError(StoreError):
    """A commit record's bytes do not match the hash in its name."""


class ShardMissingError(StoreError):
    """A live shard is not on disk."""


class ShardCorruptError(StoreError):
    """A shard's bytes do not match the hash in its name."""


class UnknownQueryError(StoreError):
    """The package has no query of that name."""


class QueryRefusedError(StoreError):
    """The SQL is not a single SELECT, or DuckDB could not run it."""


class PairSetError(StoreError):
    """The store has no such pair set, or the pair set cannot be used that way."""


class MissingError(PairSetError):
    """Scores or rewards that a run needs are not there; a line for each ends with a command."""


class SourceError(OffprefError):
    """A source file cannot be read, or holds no column that this version knows."""


class ModelError(OffprefError):
    """A model or tokenizer folder is missing, incomplete, or does not fit the store."""


class TrainingError(OffprefError):
    """A run cannot continue: a loss is not finite, or what it was resumed with has changed."""


class OwnCodeError(OffprefError):
    """A function of the user's own raised an error; the message names its file and line."""


class ReportError(OffprefError):
    """A report or a plot cannot be written: its file exists, or a library is missing."""
