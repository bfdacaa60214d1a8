"""The raw log: what was written before a program stopped is read, whatever came after."""

from __future__ import annotations

from pathlib import Path

import pytest
from traces import log_of, write_log

from realalloc.lab.trace import raw
from realalloc.lab.trace.raw import OP_FREE, OP_MALLOC


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = log_of((OP_MALLOC, 3, 0, 77), (OP_FREE, 3, 0, 0))
    found = raw.read_log(write_log(tmp_path / "log", log))
    assert found.facts == log.facts
    assert (found.events == log.events).all()
    assert (found.torn, found.refused, found.state, found.attached) == (0, 0, raw.WRITING, 4)
    assert raw.reserved(tmp_path / "log") == 2


def test_places_that_were_never_written_are_torn(tmp_path: Path) -> None:
    log = log_of((OP_MALLOC, 3, 0, 77), (OP_FREE, 3, 0, 0), (OP_MALLOC, 3, 0, 5))
    log.events[1, 2] = 0  # the last word is stored last
    found = raw.read_log(write_log(tmp_path / "log", log))
    assert len(found.events) == 2
    assert found.torn == 1


def test_places_beyond_the_limit_or_the_file_are_refused(tmp_path: Path) -> None:
    log = log_of((OP_MALLOC, 3, 0, 77), (OP_FREE, 3, 0, 0), limit=1)
    found = raw.read_log(write_log(tmp_path / "log", log))
    assert (len(found.events), found.refused) == (1, 1)
    log = log_of(*[(OP_MALLOC, 0, 16 * k, 1) for k in range(5)])
    path = write_log(tmp_path / "log", log)
    path.write_bytes(path.read_bytes()[: raw.HEADER_BYTES + 3 * raw.EVENT_BYTES + 5])
    found = raw.read_log(path)
    assert (len(found.events), found.refused) == (3, 2)


def test_a_header_that_is_cut_says_where(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", log_of())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated at byte 100"):
        raw.read_log(path)


def test_facts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        raw.header({"program": "x" * raw.HEADER_BYTES})


def test_the_file_is_whole_chunks() -> None:
    assert raw.CHUNK_BYTES % 4096 == 0
    assert raw.file_bytes(1) == raw.HEADER_BYTES + raw.CHUNK_BYTES
    assert raw.file_bytes(raw.CHUNK_EVENTS + 1) == raw.HEADER_BYTES + 2 * raw.CHUNK_BYTES
