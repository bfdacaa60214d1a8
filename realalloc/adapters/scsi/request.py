"""What a submitter holds of a command: how it ended, status, sense, data; and the errors of commands that did not complete.

Guarantees: views of data are only handed out of buffers that the target no longer writes to; what was copied out of the
command when it completed (status, sense, counts) outlives the tag.
May not: touch a slot but through its queue, which has the lock.
"""

from __future__ import annotations

import enum
from types import TracebackType
from typing import TYPE_CHECKING, Self

from realalloc.adapters.scsi.cdb import Status
from realalloc.sizes import as_timeout

if TYPE_CHECKING:
    from realalloc.adapters.scsi.queue import CommandQueue
    from realalloc.adapters.scsi.tags import Slot


class CommandTimedOut(TimeoutError):
    """The target did not complete the command within its timeout."""


class CommandAborted(RuntimeError):
    """The command was aborted, by its submitter, or because the queue was closed."""


class TargetFailure(RuntimeError):
    """The target raised; its error is the cause."""


class Outcome(enum.Enum):
    """How a command ended, seen from the initiator."""

    PENDING = "pending"
    COMPLETED = "completed"
    TIMED_OUT = "timed out"
    ABORTED = "aborted"
    FAILED = "failed"


class Request:
    """A submitted command; a context manager that releases. Status, sense and counts stay readable after release."""

    def __init__(self, queue: CommandQueue, slot: Slot, name: str) -> None:
        """Hold the slot."""
        self.tag = slot.tag
        self.outcome = Outcome.PENDING
        self.status: Status | int | None = None
        self.sense = b""  # of CHECK CONDITION: 18 bytes
        self.transferred_bytes = self.residual_bytes = 0
        self._queue = queue
        self._slot: Slot | None = slot
        self._name = name
        self._problem: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether the command was completed, however."""
        return self.outcome is not Outcome.PENDING

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Return the SCSI status. TimeoutError if the command is still pending after ``timeout_seconds``: ask again.

        CommandTimedOut, CommandAborted or TargetFailure if it ended otherwise.
        """
        self._queue._wait(self, as_timeout(timeout_seconds))
        if self.outcome is Outcome.TIMED_OUT:
            raise CommandTimedOut(f"{self._name} was not completed in time")
        if self.outcome is Outcome.ABORTED:
            raise CommandAborted(f"{self._name} was aborted")
        if self.status is None:
            raise TargetFailure(f"{self._name}: the target raised") from self._problem
        return self.status

    @property
    def data(self) -> list[memoryview]:
        """What the target sent, in its buffers, as views; valid until release. ValueError if there can be none."""
        slot = self._slot
        if slot is None or self.outcome is not Outcome.COMPLETED:
            raise ValueError(f"{self._name} was released, or the target did not complete it")
        left, views = self.transferred_bytes, []
        for view in slot.views:
            if left > 0:
                views.append(view if left >= len(view) else view[:left])
            left -= len(view)
        return views

    def abort(self) -> bool:
        """Give the command up; return False if it was complete."""
        return self._queue._abort(self)

    def release(self) -> None:
        """Abort if pending; give tag and buffers back, at once or when the target lets go. Once is enough.

        BufferError, and no release, while something has the buffer of a view of ``data`` exported.
        """
        self._queue._release(self)

    def __enter__(self) -> Self:
        """Return the request."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()
