"""SCSI on the wire: command descriptor blocks, sense data, LUNs, and the structure that carries them.

Bytes are as SPC-4 and SBC-3 have them: big-endian, fixed-format sense of 18 bytes, logical blocks of 512 bytes.
``Command`` is in this machine's byte order and knows nothing of who owns it.
"""

from __future__ import annotations

import ctypes
import enum
import struct
from typing import Final, NamedTuple

from realalloc.sizes import as_int

BLOCK_BYTES: Final = 512  # a logical block
SENSE_BYTES: Final = 18
MAX_CDB_BYTES: Final = 16
MAX_SEGMENTS: Final = 64  # data buffers of one command
MAX_DATA_BYTES: Final = (1 << 31) - 1  # of one command: what a residual can say
INQUIRY_BYTES: Final = 36
CAPACITY_BYTES: Final = 8
MAX_LUN: Final = (1 << 14) - 1


class Opcode(enum.IntEnum):
    """Operation codes that are spoken here."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    INQUIRY = 0x12
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A


CDB_BYTES: Final = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}  # by group code, the three high bits of the operation code


class Status(enum.IntEnum):
    """SAM status codes."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    TASK_ABORTED = 0x40


class SenseKey(enum.IntEnum):
    """What kind of problem."""

    NO_SENSE = 0x0
    MEDIUM_ERROR = 0x3
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    ABORTED_COMMAND = 0xB


class Sense(NamedTuple):
    """Sense data: the key, the additional code and its qualifier."""

    key: int = SenseKey.NO_SENSE
    asc: int = 0
    ascq: int = 0
    information: int | None = None  # the logical block, where one is meant
    field: tuple[int, int] | None = None  # byte of the CDB, and its bit, that were wrong

    def encode(self) -> bytes:
        """Return fixed-format sense data, current error."""
        pointer = b"\0\0\0"
        if self.field is not None:
            byte, bit = self.field
            pointer = struct.pack(">BH", 0x80 | 0x40 | 0x08 | bit, byte)  # SKSV, C/D, BPV
        response = 0x70 if self.information is None else 0xF0  # VALID
        head = struct.pack(">BBBIB4x", response, 0, self.key, self.information or 0, SENSE_BYTES - 8)
        return head + bytes((self.asc, self.ascq, 0)) + pointer


NO_SENSE: Final = Sense()
INVALID_OPCODE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x20)
LBA_OUT_OF_RANGE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x21)
NO_LOGICAL_UNIT: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x25)
POWER_ON: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29)
DATA_PHASE_ERROR: Final = Sense(SenseKey.ABORTED_COMMAND, 0x4B)  # the initiator sent less than the CDB says


def invalid_field(byte: int, bit: int = 7) -> Sense:
    """Return INVALID FIELD IN CDB that points at ``byte`` and the highest bit of the field."""
    return Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0, field=(byte, bit))


def medium_error(lba: int, *, writing: bool) -> Sense:
    """Return WRITE ERROR or UNRECOVERED READ ERROR at a logical block."""
    return Sense(SenseKey.MEDIUM_ERROR, 0x0C if writing else 0x11, 0, information=lba)


class Direction(enum.IntEnum):
    """Which way data go."""

    NONE = 0
    FROM_TARGET = 1
    TO_TARGET = 2


class Segment(ctypes.Structure):
    """One data buffer: where it is, and how much of it is the command's."""

    _fields_ = (("address", ctypes.c_uint64), ("nbytes", ctypes.c_uint64))


class Command(ctypes.Structure):
    """What initiator and target share about one command; lies in an element of a pool."""

    _fields_ = (
        ("lun", ctypes.c_uint8 * 8),  # as SAM encodes it
        ("tag", ctypes.c_uint32),
        ("data_bytes", ctypes.c_uint32),  # room for data, or data to send
        ("transferred_bytes", ctypes.c_uint32),
        (
            "residual_bytes",
            ctypes.c_int32,
        ),  # room that was not used; negative: the target had more than there was room for
        ("cdb", ctypes.c_uint8 * MAX_CDB_BYTES),
        ("sense", ctypes.c_uint8 * SENSE_BYTES),
        ("cdb_bytes", ctypes.c_uint8),
        ("direction", ctypes.c_uint8),
        ("status", ctypes.c_uint8),
        ("aborting", ctypes.c_uint8),  # set by the initiator's side: the target should let go
        ("nr_segments", ctypes.c_uint8),
        ("segments", Segment * MAX_SEGMENTS),
    )

    def finish(self, sense: Sense | None = None, status: int = Status.GOOD) -> None:
        """Set the status; with ``sense``, CHECK CONDITION and the sense data."""
        if sense is not None:
            ctypes.memmove(self.sense, sense.encode(), SENSE_BYTES)
            status = Status.CHECK_CONDITION
        self.status = status


def encode_lun(lun: int) -> bytes:
    """Return the 8 bytes of a single-level LUN: peripheral addressing below 256, flat addressing from there on."""
    number = as_int(lun, "lun", 0, MAX_LUN)
    return struct.pack(">H6x", number if number < 256 else 0x4000 | number)


def decode_lun(raw: bytes) -> int | None:
    """Return the LUN; None for what :func:`encode_lun` never makes."""
    number = int(struct.unpack(">H", raw[:2])[0])
    return number & MAX_LUN if number < 256 or 0x4100 <= number < 0x8000 else None


def cdb_length(opcode: int) -> int:
    """Return the length in bytes that the group of an operation code has; 16 for vendors' groups."""
    return CDB_BYTES.get(opcode >> 5, MAX_CDB_BYTES)


def test_unit_ready() -> bytes:
    """Return the CDB of TEST UNIT READY."""
    return bytes(6)


def request_sense(allocation_bytes: int = SENSE_BYTES) -> bytes:
    """Return the CDB of REQUEST SENSE, fixed format."""
    return struct.pack(">BBHBB", Opcode.REQUEST_SENSE, 0, 0, as_int(allocation_bytes, "allocation_bytes", 0, 0xFF), 0)


def inquiry(allocation_bytes: int = INQUIRY_BYTES) -> bytes:
    """Return the CDB of INQUIRY, standard data."""
    return struct.pack(">BBBHB", Opcode.INQUIRY, 0, 0, as_int(allocation_bytes, "allocation_bytes", 0, 0xFFFF), 0)


def read_capacity_10() -> bytes:
    """Return the CDB of READ CAPACITY(10)."""
    return struct.pack(">BBI2xBB", Opcode.READ_CAPACITY_10, 0, 0, 0, 0)


def _transfer(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return struct.pack(
        ">BBIBHB", opcode, flags, as_int(lba, "lba", 0, 0xFFFFFFFF), 0, as_int(blocks, "blocks", 0, 0xFFFF), 0
    )


def read_10(lba: int, blocks: int) -> bytes:
    """Return the CDB of READ(10) of ``blocks`` logical blocks; 0 are none."""
    return _transfer(Opcode.READ_10, lba, blocks)


def write_10(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """Return the CDB of WRITE(10); with ``fua`` it completes when the data are on the medium."""
    return _transfer(Opcode.WRITE_10, lba, blocks, 0x08 if fua else 0)
