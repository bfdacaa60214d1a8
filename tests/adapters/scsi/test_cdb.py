"""SCSI on the wire: the bytes of the standards, and what has none."""

from __future__ import annotations

import struct

import pytest

from realalloc.adapters.scsi import cdb
from realalloc.adapters.scsi.cdb import Sense

ILLEGAL = "7000 05 00000000 0a 00000000 "  # fixed, current; ILLEGAL REQUEST; 10 more bytes


def test_builders_make_the_bytes_of_the_standards() -> None:
    expected = {
        cdb.test_unit_ready(): "00 00 00 00 00 00",
        cdb.request_sense(): "03 00 00 00 12 00",
        cdb.inquiry(0x1234): "12 00 00 12 34 00",
        cdb.read_capacity_10(): "25 00 00000000 00 00 00 00",
        cdb.read_10(0x01020304, 0x0506): "28 00 01020304 00 0506 00",
        cdb.write_10(0x01020304, 0x0506): "2a 00 01020304 00 0506 00",
        cdb.write_10(1, 2, fua=True): "2a 08 00000001 00 0002 00",
    }
    for raw, text in expected.items():
        assert raw == bytes.fromhex(text)
        assert len(raw) == cdb.cdb_length(raw[0])
    for call in (
        lambda: cdb.read_10(1 << 32, 1),
        lambda: cdb.read_10(0, 1 << 16),
        lambda: cdb.write_10(-1, 1),
        lambda: cdb.inquiry(1 << 16),
        lambda: cdb.request_sense(256),
    ):
        with pytest.raises(ValueError):
            call()


def test_sense_data_are_fixed_format() -> None:
    assert Sense().encode().hex() == "70" + "00" * 6 + "0a" + "00" * 10
    assert cdb.medium_error(0x01020304, writing=False).encode().hex(" ", 1).split() == (
        "f0 00 03 01 02 03 04 0a 00 00 00 00 11 00 00 00 00 00".split()
    )
    assert cdb.medium_error(1, writing=True).encode()[12:14].hex() == "0c00"
    assert cdb.invalid_field(2).encode().hex() == (ILLEGAL + "2400 00 cf0002").replace(" ", "")


@pytest.mark.parametrize("lun", [0, 1, 255, 256, 300, 16383])
def test_luns_survive_the_wire(lun: int) -> None:
    raw = cdb.encode_lun(lun)
    assert (len(raw), cdb.decode_lun(raw)) == (8, lun)
    assert raw[:2] == (bytes((0, lun)) if lun < 256 else struct.pack(">H", 0x4000 + lun))


def test_luns_that_cannot_be() -> None:
    for lun in (-1, 16384):
        with pytest.raises(ValueError):
            cdb.encode_lun(lun)
    for raw in ("0100", "4001", "8000", "c101"):
        assert cdb.decode_lun(bytes.fromhex(raw) + bytes(6)) is None
