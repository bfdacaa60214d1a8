"""A request by itself, on a queue that does what it is told: every outcome has its answer, and data are cut to what came."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from realalloc.adapters.scsi import CommandAborted, CommandTimedOut, Outcome, Request, Status, TargetFailure
from realalloc.adapters.scsi.cdb import Command
from realalloc.adapters.scsi.tags import Slot


class Queue:
    """Ends a request as it is told, and writes down what it is asked."""

    def __init__(self, **becomes: Any) -> None:
        self.becomes = becomes
        self.calls: list[tuple[str, Any]] = []

    def _wait(self, request: Request, seconds: float | None) -> None:
        self.calls.append(("wait", seconds))
        for name, value in self.becomes.items():
            setattr(request, name, value)

    def _abort(self, request: Request) -> bool:
        self.calls.append(("abort", request.tag))
        return True

    def _release(self, request: Request) -> None:
        self.calls.append(("release", request.tag))
        request._slot = None


def make(tag: int = 7, **becomes: Any) -> tuple[Request, Queue, Slot]:
    queue, slot = Queue(**becomes), Slot(tag, Command())
    return Request(queue, slot, "READ(10)"), queue, slot  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "error", "says"),
    [
        (Outcome.TIMED_OUT, CommandTimedOut, "READ\\(10\\) was not completed in time"),
        (Outcome.ABORTED, CommandAborted, "READ\\(10\\) was aborted"),
        (Outcome.FAILED, TargetFailure, "READ\\(10\\): the target raised"),
    ],
)
def test_what_ended_otherwise_is_an_error(outcome: Outcome, error: type[Exception], says: str) -> None:
    cause = OSError("disk")
    request, queue, _ = make(outcome=outcome, _problem=cause)
    assert not request.done
    with pytest.raises(error, match=says) as info:
        request.wait(3)
    assert info.value.__cause__ is (cause if outcome is Outcome.FAILED else None)
    assert request.done and queue.calls == [("wait", 3)]
    with pytest.raises(ValueError, match="did not complete it"):
        _ = request.data


@pytest.mark.parametrize("status", [Status.GOOD, Status.CHECK_CONDITION, 0x28])
def test_what_was_completed_has_a_status(status: int) -> None:
    request, queue, _ = make(outcome=Outcome.COMPLETED, status=status)
    assert request.wait() == status and queue.calls == [("wait", None)]


@pytest.mark.parametrize("seconds", [-1, float("nan"), "1", True])
def test_a_timeout_that_is_none_is_not_waited_for(seconds: Any) -> None:
    request, queue, _ = make()
    with pytest.raises((ValueError, TypeError)):
        request.wait(seconds)
    assert queue.calls == []


@pytest.mark.parametrize("lengths", list(itertools.product((1, 3, 4), repeat=3)))
def test_data_are_the_first_bytes_of_the_buffers(lengths: tuple[int, ...]) -> None:
    total = sum(lengths)
    source = bytes(range(1, total + 1))
    for transferred in range(total + 1):
        request, _, slot = make(outcome=Outcome.COMPLETED, status=Status.GOOD, transferred_bytes=transferred)
        starts = [0, *itertools.accumulate(lengths)]
        slot.views = [memoryview(source)[a:b] for a, b in itertools.pairwise(starts)]
        request.wait()
        assert b"".join(request.data) == source[:transferred]
        assert all(len(view) for view in request.data)


def test_leaving_the_block_releases_and_data_are_gone() -> None:
    request, queue, _ = make(tag=9, outcome=Outcome.COMPLETED, status=Status.GOOD)
    with pytest.raises(ZeroDivisionError), request as same:
        assert same is request and request.abort() and request.wait() == Status.GOOD
        raise ZeroDivisionError
    assert [call for call in queue.calls if call[0] != "wait"] == [("abort", 9), ("release", 9)]
    with pytest.raises(ValueError, match="was released"):
        _ = request.data
    assert request.wait() == Status.GOOD  # status and counts stay
