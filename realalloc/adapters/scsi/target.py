"""A target: logical units over files that answer the commands of ``cdb.py`` as SPC-4 and SBC-3 say.

``Target`` is what a queue needs of any target. ``FileTarget`` serves; its commands may run side by side on several threads,
in any order, as with the SIMPLE task attribute. It never raises for what an initiator sends: that is status and sense data.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from realalloc.adapters.direct import check_kind
from realalloc.adapters.scsi import cdb
from realalloc.adapters.scsi.cdb import BLOCK_BYTES, Command, Direction, Opcode, Sense, Status
from realalloc.closing import Closing
from realalloc.sizes import as_int

StrPath = str | os.PathLike[str]
NACA: Final = 0x04  # in the control byte: not supported
EXEMPT: Final = (Opcode.INQUIRY, Opcode.REQUEST_SENSE)  # served without a logical unit, and while it wants attention


class Target(Protocol):
    """Who executes commands."""

    def execute(self, command: Command, data: Sequence[memoryview]) -> None:
        """Serve: fill or read ``data``, set status, sense, transferred and residual bytes. Return when it is let go.

        ``command.aborting`` may become 1 meanwhile: return soon, with TASK ABORTED.
        """


def standard_inquiry(*, present: bool) -> bytes:
    """Return standard INQUIRY data: a direct-access block device of SPC-4 that queues, or no device."""
    head = bytes((0x00 if present else 0x7F, 0x00, 0x06, 0x02, cdb.INQUIRY_BYTES - 5, 0x00, 0x00, 0x02))
    return head + b"REALALLC" + b"FILE".ljust(16) + b"0001"


def _length(fd: int, path: StrPath) -> int:
    check_kind(fd, os.fspath(path))
    blocks = os.lseek(fd, 0, os.SEEK_END) // BLOCK_BYTES
    if blocks < 1:
        raise ValueError(f"{os.fspath(path)!r} has not even one block of {BLOCK_BYTES} bytes")
    return blocks


class _Unit:
    """A logical unit: a file, its length in blocks when it was opened, and whether it wants attention."""

    def __init__(self, path: StrPath, *, attention: bool) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)  # never wait for what is no file
        self._attention = [cdb.POWER_ON] if attention else []
        try:
            self.blocks = _length(self.fd, path)
        except BaseException:
            os.close(self.fd)
            raise

    def attention(self) -> Sense | None:
        """Return what is pending, and forget it: one thread gets it."""
        try:
            return self._attention.pop()
        except IndexError:
            return None


class FileTarget(Closing):
    """Logical units over existing files: ``FileTarget({0: path})``; a context manager that closes them.

    ``power_on_attention``: each unit's first command other than INQUIRY and REQUEST SENSE is answered with UNIT ATTENTION.
    """

    def __init__(self, files: Mapping[int, StrPath], *, power_on_attention: bool = False) -> None:
        """Open; OSError, or ValueError for a LUN above 16383 or what is no file with a whole block."""
        self._units: dict[int, _Unit] = {}
        self._handlers: dict[int, Callable[[Command, _Unit | None, Sequence[memoryview], bytes], Sense | None]] = {
            Opcode.TEST_UNIT_READY: self._test_unit_ready,
            Opcode.REQUEST_SENSE: self._request_sense,
            Opcode.INQUIRY: self._inquiry,
            Opcode.READ_CAPACITY_10: self._read_capacity,
            Opcode.READ_10: self._read,
            Opcode.WRITE_10: self._write,
        }
        self._closing = threading.Lock()
        try:
            for lun, path in files.items():
                number = as_int(lun, "lun", 0, cdb.MAX_LUN)  # before the file is opened
                self._units[number] = _Unit(path, attention=power_on_attention)
        except BaseException:
            self.close()
            raise

    # -- one command -------------------------------------------------------------------------------------------------

    def execute(self, command: Command, data: Sequence[memoryview]) -> None:
        """Serve one command; see :class:`Target`."""
        raw = bytes(command.cdb)[: command.cdb_bytes]
        command.transferred_bytes, command.residual_bytes = 0, command.data_bytes
        sense = self._serve(command, data, raw)
        if command.aborting:
            command.finish(status=Status.TASK_ABORTED)
        else:
            command.finish(sense)

    def _serve(self, command: Command, data: Sequence[memoryview], raw: bytes) -> Sense | None:
        lun = cdb.decode_lun(bytes(command.lun))
        unit = None if lun is None else self._units.get(lun)
        opcode = raw[0]
        if opcode not in EXEMPT:
            if unit is None:
                return cdb.NO_LOGICAL_UNIT
            pending = unit.attention()
            if pending is not None:
                return pending
        handler = self._handlers.get(opcode)
        if handler is None:
            return cdb.INVALID_OPCODE
        if len(raw) < cdb.cdb_length(opcode):
            return cdb.invalid_field(len(raw))
        if raw[-1] & NACA:
            return cdb.invalid_field(len(raw) - 1, 2)
        return handler(command, unit, data, raw)

    def _test_unit_ready(
        self, _command: Command, _unit: _Unit | None, _data: Sequence[memoryview], _raw: bytes
    ) -> Sense | None:
        return None

    def _request_sense(
        self, command: Command, unit: _Unit | None, data: Sequence[memoryview], raw: bytes
    ) -> Sense | None:
        if raw[1] & 0x01:  # DESC: descriptor format is not supported
            return cdb.invalid_field(1, 0)
        sense = cdb.NO_LOGICAL_UNIT if unit is None else unit.attention() or cdb.NO_SENSE
        self._answer(command, data, sense.encode()[: raw[4]])
        return None

    def _inquiry(self, command: Command, unit: _Unit | None, data: Sequence[memoryview], raw: bytes) -> Sense | None:
        if raw[1] & 0x01:  # EVPD: there are no vital product data pages
            return cdb.invalid_field(1, 0)
        if raw[2]:
            return cdb.invalid_field(2)
        (allocation,) = struct.unpack_from(">H", raw, 3)
        self._answer(command, data, standard_inquiry(present=unit is not None)[:allocation])
        return None

    def _read_capacity(
        self, command: Command, unit: _Unit | None, data: Sequence[memoryview], raw: bytes
    ) -> Sense | None:
        assert unit is not None
        (lba,) = struct.unpack_from(">I", raw, 2)
        if lba and not raw[8] & 0x01:  # PMI
            return cdb.invalid_field(2)
        self._answer(command, data, struct.pack(">II", min(unit.blocks - 1, 0xFFFFFFFF), BLOCK_BYTES))
        return None

    # -- data --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _moved(command: Command, wanted: int, moved: int) -> None:
        command.transferred_bytes = moved
        command.residual_bytes = command.data_bytes - wanted

    def _answer(self, command: Command, data: Sequence[memoryview], answer: bytes) -> None:
        """Send a few bytes to the initiator."""
        moved = 0
        for view in data:
            step = min(len(view), len(answer) - moved)
            view[:step] = answer[moved : moved + step]
            moved += step
        self._moved(command, len(answer), moved)

    def _extent(self, command: Command, unit: _Unit, raw: bytes) -> tuple[int, int] | Sense:
        """Return byte offset and length that READ(10) or WRITE(10) means, or what is wrong with it."""
        if raw[1] & 0xE0:  # RDPROTECT, WRPROTECT: no protection information here
            return cdb.invalid_field(1)
        lba, blocks = struct.unpack_from(">I", raw, 2)[0], struct.unpack_from(">H", raw, 7)[0]
        if lba + blocks > unit.blocks:
            return cdb.LBA_OUT_OF_RANGE
        self._moved(command, blocks * BLOCK_BYTES, 0)
        return lba * BLOCK_BYTES, blocks * BLOCK_BYTES

    def _read(self, command: Command, unit: _Unit | None, data: Sequence[memoryview], raw: bytes) -> Sense | None:
        assert unit is not None
        extent = self._extent(command, unit, raw)
        if isinstance(extent, Sense):
            return extent
        offset, nbytes = extent
        return self._move(self._pread, command, unit, data, offset, min(nbytes, command.data_bytes))

    def _write(self, command: Command, unit: _Unit | None, data: Sequence[memoryview], raw: bytes) -> Sense | None:
        assert unit is not None
        extent = self._extent(command, unit, raw)
        if isinstance(extent, Sense):
            return extent
        offset, nbytes = extent
        sent = command.data_bytes if command.direction == Direction.TO_TARGET else 0  # else buffers have stale bytes
        if sent < nbytes:
            return cdb.DATA_PHASE_ERROR
        sense = self._move(self._pwrite, command, unit, data, offset, nbytes)
        if sense is None and raw[1] & 0x08:  # FUA
            try:
                os.fdatasync(unit.fd)
            except OSError:
                return cdb.medium_error(offset // BLOCK_BYTES, writing=True)
        return sense

    def _move(
        self,
        once: Callable[[int, memoryview, int], int],
        command: Command,
        unit: _Unit,
        data: Sequence[memoryview],
        offset: int,
        nbytes: int,
    ) -> Sense | None:
        """Move ``nbytes`` between file and buffers, a buffer at a time; between two, see whether to give up."""
        moved = 0
        for view in data:
            end = min(len(view), nbytes - moved)
            begin = 0
            while begin < end and not command.aborting:
                try:
                    step = once(unit.fd, view[begin:end], offset + moved)
                except OSError:
                    step = 0
                if step <= 0:  # an error, or a file that became shorter
                    return cdb.medium_error((offset + moved) // BLOCK_BYTES, writing=once == self._pwrite)
                begin += step
                moved += step
                command.transferred_bytes = moved
        return None

    def _pread(self, fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view], offset)

    def _pwrite(self, fd: int, view: memoryview, offset: int) -> int:
        return os.pwrite(fd, view, offset)

    # -- its life ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the files; no command may be in the target's hands. Twice is fine."""
        with self._closing:
            while self._units:
                os.close(self._units.popitem()[1].fd)
