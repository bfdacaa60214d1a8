"""What ``with`` does for things that are closed: once, at the end of the block, whatever happened in it."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """A context manager that closes itself."""

    __slots__ = ()

    def close(self) -> None:
        """Give everything back; a second close does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Return what is to be closed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
