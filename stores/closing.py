"""What is closed at the end of a with-block."""

from types import TracebackType
from typing import Self


class Closing:
    """A with-block of it ends with its ``close``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Give back what it holds."""
        raise NotImplementedError
