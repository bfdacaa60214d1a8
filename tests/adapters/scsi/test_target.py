"""The target, byte by byte: data, sense and status of every command, right and wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from realalloc.adapters.scsi import cdb
from realalloc.adapters.scsi.cdb import Command, Sense, SenseKey, Status
from realalloc.adapters.scsi.target import FileTarget

BLOCKS = 16
CONTENT = bytes(k * 31 % 253 for k in range(BLOCKS * 512))
ILLEGAL = "7000 05 00000000 0a 00000000 "  # fixed, current; ILLEGAL REQUEST; 10 more bytes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk"
    made.write_bytes(CONTENT + b"not a block")
    return made


@pytest.fixture
def target(path: Path) -> Iterator[FileTarget]:
    with FileTarget({0: path, 300: path}) as made:
        yield made
    made.close()


class Answer:
    """A command that was executed, with data in pieces of ``piece`` bytes."""

    def __init__(
        self, target: FileTarget, raw: bytes, lun: int | bytes = 0, room: int = 0, data: bytes = b"", piece: int = 700
    ):
        self.command = Command()
        self.memory = bytearray(data) if data else bytearray(b"\xee" * room)
        view = memoryview(self.memory)
        self.command.cdb[: len(raw)] = list(raw)
        self.command.cdb_bytes = len(raw)
        self.command.lun[:] = list(lun if isinstance(lun, bytes) else cdb.encode_lun(lun))
        self.command.data_bytes = len(self.memory)
        self.command.direction = cdb.Direction.TO_TARGET if data else cdb.Direction.FROM_TARGET
        target.execute(self.command, [view[begin : begin + piece] for begin in range(0, len(view), piece)])

    @property
    def status(self) -> int:
        return int(self.command.status)

    @property
    def sense(self) -> bytes:
        return bytes(self.command.sense)

    @property
    def data(self) -> bytes:
        return bytes(self.memory[: self.command.transferred_bytes])


def check_condition(answer: Answer, sense: str) -> None:
    assert (answer.status, answer.sense.hex()) == (0x02, sense.replace(" ", ""))
    assert answer.data == b""


# -- INQUIRY, REQUEST SENSE, TEST UNIT READY, READ CAPACITY ----------------------------------------------------------


@pytest.mark.parametrize("allocation", [0, 1, 5, 35, 36, 37, 255, 65535])
def test_inquiry(target: FileTarget, allocation: int) -> None:
    standard = bytes.fromhex("00 00 06 02 1f 00 00 02") + b"REALALLCFILE            0001"
    assert len(standard) == 36
    answer = Answer(target, cdb.inquiry(allocation), room=64)
    assert (answer.status, answer.data) == (0, standard[:allocation])
    assert answer.command.residual_bytes == 64 - min(allocation, 36)
    absent = Answer(target, cdb.inquiry(allocation), lun=7, room=64, piece=5)
    assert (absent.status, absent.data) == (0, (b"\x7f" + standard[1:])[:allocation])


def test_inquiry_fields_that_are_not_supported(target: FileTarget) -> None:
    check_condition(Answer(target, bytes.fromhex("120100002400"), room=36), ILLEGAL + "2400 00 c80001")  # EVPD
    check_condition(Answer(target, bytes.fromhex("120080002400"), room=36), ILLEGAL + "2400 00 cf0002")  # page code


@pytest.mark.parametrize("allocation", [0, 4, 17, 18, 252])
def test_request_sense_has_nothing_to_say(target: FileTarget, allocation: int) -> None:
    answer = Answer(target, cdb.request_sense(allocation), room=300)
    assert (answer.status, answer.data) == (0, Sense().encode()[:allocation])
    absent = Answer(target, cdb.request_sense(allocation), lun=1, room=300)
    assert (absent.status, absent.data) == (0, cdb.NO_LOGICAL_UNIT.encode()[:allocation])


def test_request_sense_in_descriptor_format_is_not_supported(target: FileTarget) -> None:
    check_condition(Answer(target, bytes.fromhex("030100001200"), room=18), ILLEGAL + "2400 00 c80001")


def test_a_unit_that_wants_attention_says_so_once(path: Path) -> None:
    attention = "7000 06 00000000 0a 00000000 2900 00 000000"
    with FileTarget({0: path, 1: path, 2: path}, power_on_attention=True) as target:
        assert Answer(target, cdb.inquiry(), room=36).status == 0
        check_condition(Answer(target, cdb.read_10(0, 1), room=512), attention)
        assert Answer(target, cdb.read_10(0, 1), room=512).data == CONTENT[:512]
        told = Answer(target, cdb.request_sense(), lun=1, room=18)
        assert (told.status, told.data.hex()) == (0, attention.replace(" ", ""))
        assert Answer(target, cdb.test_unit_ready(), lun=1).status == 0
        check_condition(Answer(target, bytes([0xFF]) * 16, lun=2), attention)  # before the opcode is looked at


def test_ready_and_capacity(target: FileTarget) -> None:
    assert Answer(target, cdb.test_unit_ready()).status == 0
    for room in (8, 20):
        answer = Answer(target, cdb.read_capacity_10(), room=room, piece=3)
        assert (answer.data.hex(), answer.command.residual_bytes) == ("0000000f00000200", room - 8)
    short = Answer(target, cdb.read_capacity_10(), room=3)
    assert (short.data.hex(), short.command.residual_bytes) == ("000000", -5)
    check_condition(Answer(target, bytes.fromhex("25000000000100000000"), room=8), ILLEGAL + "2400 00 cf0002")
    assert Answer(target, bytes.fromhex("25000000000100000100"), room=8).data.hex() == "0000000f00000200"


def test_a_capacity_above_32_bits_of_blocks_is_all_ones(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate((1 << 32) * 512 + 512)
    with FileTarget({0: large}) as target:
        assert Answer(target, cdb.read_capacity_10(), room=8).data.hex() == "ffffffff00000200"
        assert Answer(target, cdb.read_10(0xFFFFFFFF, 1), room=512).data == bytes(512)


# -- READ(10), WRITE(10) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [100, 512, 700, 100_000])
def test_every_extent_is_read_and_written(target: FileTarget, path: Path, piece: int) -> None:
    expected = bytearray(CONTENT)
    for lba in range(BLOCKS + 1):
        for blocks in range(BLOCKS + 1 - lba):
            begin, end = lba * 512, (lba + blocks) * 512
            answer = Answer(target, cdb.read_10(lba, blocks), room=blocks * 512, piece=piece)
            assert (answer.status, answer.data) == (0, bytes(expected[begin:end]))
            new = os.urandom(end - begin)
            wrote = Answer(target, cdb.write_10(lba, blocks, fua=lba == 3), data=new, lun=300, piece=piece)
            assert (wrote.status, wrote.command.transferred_bytes, wrote.command.residual_bytes) == (0, len(new), 0)
            expected[begin:end] = new
    assert path.read_bytes() == bytes(expected) + b"not a block"


@pytest.mark.parametrize("make", [cdb.read_10, cdb.write_10])
@pytest.mark.parametrize(("lba", "blocks"), [(16, 1), (17, 0), (0, 17), (15, 2), (0xFFFFFFFF, 0xFFFF), (0xFFFFFFFF, 1)])
def test_blocks_beyond_the_end(
    target: FileTarget, path: Path, make: Callable[..., bytes], lba: int, blocks: int
) -> None:
    check_condition(Answer(target, make(lba, blocks), room=9000), ILLEGAL + "2100 00 000000")
    assert path.read_bytes()[: len(CONTENT)] == CONTENT


@pytest.mark.parametrize("make", [cdb.read_10, cdb.write_10])
def test_protection_and_naca_are_not_supported(target: FileTarget, make: Callable[..., bytes]) -> None:
    raw = bytearray(make(0, 1))
    raw[1] = 0x20
    check_condition(Answer(target, bytes(raw), room=512), ILLEGAL + "2400 00 cf0001")
    raw[1], raw[9] = 0, 0x04
    check_condition(Answer(target, bytes(raw), room=512), ILLEGAL + "2400 00 ca0009")


def test_less_and_more_room_than_the_command_means(target: FileTarget, path: Path) -> None:
    more = Answer(target, cdb.read_10(1, 1), room=1000)
    assert (more.data, more.command.residual_bytes) == (CONTENT[512:1024], 488)
    less = Answer(target, cdb.read_10(1, 2), room=600)
    assert (less.status, less.data, less.command.residual_bytes) == (0, CONTENT[512:1112], -424)
    surplus = Answer(target, cdb.write_10(0, 1), data=b"x" * 600)
    assert (surplus.status, surplus.command.transferred_bytes, surplus.command.residual_bytes) == (0, 512, 88)
    lacking = Answer(target, cdb.write_10(1, 1), data=b"y" * 511)
    check_condition(lacking, "7000 0b 00000000 0a 00000000 4b00 00 000000")
    assert path.read_bytes()[:1024] == b"x" * 512 + CONTENT[512:1024]


# -- refusals and faults ---------------------------------------------------------------------------------------------


def test_every_other_opcode_is_invalid(target: FileTarget) -> None:
    for opcode in set(range(256)) - set(cdb.Opcode):
        raw = bytes([opcode]).ljust(cdb.cdb_length(opcode), b"\0")
        check_condition(Answer(target, raw, room=8), ILLEGAL + "2000 00 000000")


@pytest.mark.parametrize("lun", [1, 255, 299, bytes.fromhex("8000000000000000")])
def test_units_that_are_not_there(target: FileTarget, lun: Any) -> None:
    for raw in (cdb.test_unit_ready(), cdb.read_capacity_10(), cdb.read_10(0, 1), cdb.write_10(0, 1), b"\xff" * 16):
        check_condition(Answer(target, raw, lun=lun, room=512), ILLEGAL + "2500 00 000000")


def test_a_cdb_that_ends_too_early_points_at_what_is_missing(target: FileTarget) -> None:
    check_condition(Answer(target, cdb.read_10(0, 1)[:7], room=512), ILLEGAL + "2400 00 cf0007")


@pytest.mark.parametrize("lba", [0, 3])
def test_io_errors_are_medium_errors_with_the_block(target: FileTarget, monkeypatch: Any, lba: int) -> None:
    def broken(*arguments: Any) -> int:
        raise OSError(errno.EIO, "no")

    def half(fd: int, view: memoryview, offset: int) -> int:
        return len(view[:512]) if offset < 512 * (lba + 2) else broken()

    monkeypatch.setattr(target, "_pread", half)
    answer = Answer(target, cdb.read_10(lba, 4), room=2048, piece=4096)
    assert (answer.status, answer.command.transferred_bytes) == (2, 1024)
    assert answer.sense == cdb.medium_error(lba + 2, writing=False).encode()
    monkeypatch.setattr(target, "_pwrite", broken)
    assert Answer(target, cdb.write_10(lba, 1), data=bytes(512)).sense == cdb.medium_error(lba, writing=True).encode()
    monkeypatch.undo()
    monkeypatch.setattr(os, "fdatasync", broken)
    sync = Answer(target, cdb.write_10(lba, 1, fua=True), data=bytes(512))
    assert (sync.sense[2], sync.sense[12]) == (SenseKey.MEDIUM_ERROR, 0x0C)


def test_a_file_that_became_shorter_is_a_medium_error(target: FileTarget, path: Path) -> None:
    os.truncate(path, 1024)
    answer = Answer(target, cdb.read_10(0, 4), room=2048, piece=4096)
    assert (answer.status, answer.command.transferred_bytes) == (2, 1024)
    assert answer.sense == cdb.medium_error(2, writing=False).encode()


def test_an_aborted_command_is_let_go_between_buffers(target: FileTarget, monkeypatch: Any) -> None:
    real = target._pread
    answers: list[int] = []

    def abort(fd: int, view: memoryview, offset: int) -> int:
        answers.append(offset)
        commands[0].aborting = 1
        return real(fd, view, offset)

    command = Command()
    commands = [command]
    command.cdb[:10] = list(cdb.read_10(0, 4))
    command.cdb_bytes, command.data_bytes = 10, 2048
    monkeypatch.setattr(target, "_pread", abort)
    target.execute(command, [memoryview(bytearray(512)) for _ in range(4)])
    assert (command.status, command.transferred_bytes, answers) == (Status.TASK_ABORTED, 512, [0])


def test_what_cannot_be_opened(tmp_path: Path, path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "small").write_bytes(bytes(511))
    for files, error in (
        ({0: path, 1: tmp_path / "none"}, FileNotFoundError),
        ({0: path, 1: tmp_path / "small"}, ValueError),
        ({0: path, 16384: path}, ValueError),
    ):
        with pytest.raises(error):
            FileTarget(files)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_has_no_length_is_refused_and_no_descriptor_is_lost(tmp_path: Path, path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="fifo' is neither a regular file nor a block device"):
        FileTarget({0: path, 1: tmp_path / "fifo"})
    assert len(os.listdir("/proc/self/fd")) == before
