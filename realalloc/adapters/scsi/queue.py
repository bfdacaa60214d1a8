"""The command queue: bounded submission, execution on threads, completion in any order, timeouts and aborts.

A command is pending until it is completed: by the target, by its timeout, by ``abort`` or by closing. What the target does
with a command that was given up does not reach the submitter, and its tag and buffers are not used again until the target
lets go. Guarantee: in steady state a command takes nothing from the arena: commands are made once, buffers come from a
reserve. Lock: ``_lock`` guards slots, requests and the two deques; the target is called without it.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

from realalloc.adapters.bounded import time_left, wait_until
from realalloc.adapters.octets import as_octets
from realalloc.adapters.scsi.cdb import MAX_CDB_BYTES, Command, Direction, Status, encode_lun
from realalloc.adapters.scsi.request import Outcome, Request
from realalloc.adapters.scsi.tags import Slot, TagSet
from realalloc.adapters.scsi.target import Target
from realalloc.closing import Closing
from realalloc.sizes import as_int, as_timeout

if TYPE_CHECKING:
    from realalloc.arena import Arena

DEFAULT_TIMEOUT_SECONDS = 30.0  # as sd has it


class CommandQueue(Closing):
    """``depth`` tags towards a target, and ``nr_buffers`` buffers of ``buffer_bytes`` for data; a context manager.

    ``workers`` commands execute at a time, each with ``timeout_seconds`` from its submission on unless it says otherwise.
    """

    def __init__(
        self,
        arena: Arena,
        target: Target,
        *,
        depth: int = 32,
        nr_buffers: int = 32,
        buffer_bytes: int = 4096,
        workers: int = 4,
        timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        """Make tags and buffers, start the threads. ValueError for numbers; OutOfMemory, RuntimeError, with nothing kept."""
        threads = as_int(workers, "workers", 1, 1024)
        self._timeout_seconds = as_timeout(timeout_seconds)
        self._target = target
        self._set = TagSet(arena, depth, nr_buffers, buffer_bytes)
        self.command_pool, self.data_pool = self._set.command_pool, self._set.data_pool
        self._lock = threading.Lock()
        self._submitted = threading.Condition(self._lock)
        self._completed = threading.Condition(self._lock)
        self._earlier = threading.Condition(self._lock)  # a deadline before the one the timer sleeps to
        self._queued: deque[Slot] = deque()
        self._done: deque[Request] = deque()
        self._wakes = float("inf")
        self._closed = False
        self._threads: list[threading.Thread] = []
        try:
            for work in (self._watch, *[self._work] * threads):
                thread = threading.Thread(target=work, name="realalloc-scsi", daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException:
            self.close()
            raise

    @property
    def free_tags(self) -> int:
        """Commands that could be submitted now."""
        return self._set.free_tags

    # -- the submitter's side ----------------------------------------------------------------------------------------

    def submit(
        self,
        raw: bytes,
        *,
        lun: int = 0,
        data: Any = None,
        receive_bytes: int = 0,
        timeout_seconds: float | None = None,
        wait_seconds: float | None = None,
    ) -> Request:
        """Submit the CDB ``raw`` with bytes-like ``data`` to send, copied, or room to receive ``receive_bytes``.

        Waits ``wait_seconds``, or for ever, for a tag and buffers; then TimeoutError. ``timeout_seconds`` is this command's
        own. ValueError for a CDB, a LUN or data that cannot be, and for a closed queue.
        """
        if not 1 <= len(raw) <= MAX_CDB_BYTES:
            raise ValueError(f"a CDB has 1 to {MAX_CDB_BYTES} bytes, not {len(raw)}")
        encode_lun(lun)
        seconds = self._timeout_seconds if timeout_seconds is None else as_timeout(timeout_seconds)
        with as_octets(data if data is not None else b"") as payload:
            receive = as_int(receive_bytes, "receive_bytes", 0)
            if len(payload) and receive:
                raise ValueError("a command sends or receives, not both")
            direction = (
                Direction.TO_TARGET if data is not None else Direction.FROM_TARGET if receive else Direction.NONE
            )
            nbytes = len(payload) or receive
            if nbytes > self._set.most_bytes:
                raise ValueError(f"{nbytes} bytes of data; a command can have {self._set.most_bytes}")
            slot = self._set.take(-(-nbytes // self._set.buffer_bytes), as_timeout(wait_seconds))
            try:
                with self._lock:
                    return self._start(slot, bytes(raw), lun, direction, payload, nbytes, seconds)
            except BaseException:  # Ctrl-C at the lock, too
                self._withdraw(slot)
                raise

    def _start(
        self, slot: Slot, raw: bytes, lun: int, direction: int, payload: memoryview, nbytes: int, seconds: float | None
    ) -> Request:
        """Fill the slot and queue it. The lock is held."""
        if self._closed:
            raise ValueError("the queue is closed")
        slot.describe(raw, lun, direction)
        slot.lend(self._set.buffers(slot.nr_buffers), nbytes)
        done = 0
        for view in slot.views if len(payload) else ():
            view[:] = payload[done : done + len(view)]
            done += len(view)
        request = Request(self, slot, f"command {raw[0]:02X}h, tag {slot.tag},")
        slot.request = request
        slot.deadline = None if seconds is None else time.monotonic() + seconds
        if slot.deadline is not None and slot.deadline < self._wakes:
            self._earlier.notify()
        self._queued.append(slot)
        self._submitted.notify()
        return request

    def _withdraw(self, slot: Slot) -> None:
        """Give back a slot whose submission failed, wherever; while it has no request nobody else looks at it."""
        if slot.request is None:
            self._set.give(slot)
        else:
            self._release(slot.request)

    def _wait(self, request: Request, seconds: float | None) -> None:
        with self._lock:
            if not wait_until(self._completed, lambda: request.done, seconds):
                raise TimeoutError(f"{request._name} is pending after {seconds} s")

    def reap(self, timeout_seconds: float | None = None) -> Request:
        """Return the request that was completed first of those not yet reaped or released; TimeoutError."""
        with self._lock:
            if not wait_until(self._completed, lambda: self._done, as_timeout(timeout_seconds)):
                raise TimeoutError(f"nothing was completed within {timeout_seconds} s")
            return self._done.popleft()

    def _abort(self, request: Request) -> bool:
        with self._lock:
            return self._give_up(request, Outcome.ABORTED)

    def _release(self, request: Request) -> None:
        with self._lock:
            slot = request._slot
            if slot is None:
                return
            self._give_up(request, Outcome.ABORTED)
            if not slot.with_target:
                slot.release()
            self._part(slot)

    # -- under the lock ----------------------------------------------------------------------------------------------

    def _complete(self, request: Request, outcome: Outcome) -> None:
        request.outcome = outcome
        self._done.append(request)
        self._completed.notify_all()

    def _give_up(self, request: Request, outcome: Outcome) -> bool:
        slot = request._slot
        if request.done or slot is None:
            return False
        if slot.with_target:
            assert slot.command is not None
            slot.command.aborting = 1
        elif slot in self._queued:  # it is not, where its submission was interrupted
            self._queued.remove(slot)
        self._complete(request, outcome)
        return True

    def _part(self, slot: Slot) -> None:
        """The submitter lets go."""
        request, slot.request = slot.request, None
        request._slot = None
        if request in self._done:
            self._done.remove(request)
        if not slot.with_target:
            self._set.give(slot)

    def _take_over(self, slot: Slot, command: Command, problem: BaseException | None) -> None:
        """The target lets go: tell the submitter if it still waits, free the tag if it is gone."""
        slot.with_target = False
        request = slot.request
        if request is None:
            self._set.give(slot)
        elif not request.done:
            if problem is not None:
                request._problem = problem
                self._complete(request, Outcome.FAILED)
                return
            known = command.status in list(Status)
            request.status = Status(command.status) if known else command.status
            request.sense = bytes(command.sense) if command.status == Status.CHECK_CONDITION else b""
            request.transferred_bytes = command.transferred_bytes
            request.residual_bytes = command.residual_bytes
            self._complete(request, Outcome.COMPLETED)

    # -- threads -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Hand commands to the target."""
        while True:
            with self._lock:
                self._submitted.wait_for(lambda: self._queued or self._closed)
                if not self._queued:
                    return
                slot = self._queued.popleft()
                slot.with_target = True
            command = slot.command
            problem: BaseException | None = None
            assert command is not None
            try:
                self._target.execute(command, slot.views)
            except BaseException as raised:  # noqa: BLE001  # whatever it is, the worker and the tag go on
                traceback.clear_frames(raised.__traceback__)  # their variables may be views
                problem = raised
            with self._lock:
                self._take_over(slot, command, problem)
            del command, slot, problem

    def _watch(self) -> None:
        """Give up commands whose time is over."""
        with self._lock:
            while not self._closed:
                now = time.monotonic()
                self._wakes = float("inf")
                for slot in self._set.slots:
                    if slot.request is None or slot.request.done or slot.deadline is None:
                        continue
                    if slot.deadline <= now:
                        self._give_up(slot.request, Outcome.TIMED_OUT)
                    else:
                        self._wakes = min(self._wakes, slot.deadline)
                self._earlier.wait(min(self._wakes - now, threading.TIMEOUT_MAX))

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, timeout_seconds: float | None = None) -> None:
        """Abort what is pending, wait until the target has let go, release all requests, give the pools back. Twice is fine.

        TimeoutError if the target still holds commands after ``timeout_seconds``; BufferError while arrays over data live.
        After either, call it again.
        """
        seconds = as_timeout(timeout_seconds)
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._lock:
            self._closed = True
            for slot in self._set.slots:
                if slot.request is not None:
                    self._give_up(slot.request, Outcome.ABORTED)
            for condition in (self._submitted, self._earlier):
                condition.notify_all()
        for thread in self._threads:
            thread.join(time_left(deadline))
        with self._lock:
            held = sum(slot.with_target for slot in self._set.slots)
            if held:
                raise TimeoutError(f"the target still holds {held} commands after {seconds} s")
            for slot in self._set.slots:
                if slot.request is not None:
                    self._part(slot)
            self._set.close()
