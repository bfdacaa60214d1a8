"""Records of threads: one serves many short lives, and a slot can be had without."""

from __future__ import annotations

from kernels import Worker, assert_pristine, make_cache, slot_fields, slots, touch
from support import PAGE, RawArena

from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.layout import ENOMEM, H_NR_RECORDS, MIN_SHEAVES_PAGES, NULL_RECORD

SMALLEST = MIN_SHEAVES_PAGES * PAGE


def test_many_short_lives_need_one_record() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    for _ in range(40):
        worker = Worker()
        worker.do(touch, raw, c, 70)
        worker.end(raw)
        assert raw.words[H_NR_RECORDS] == 1
    raw.validate()
    assert_pristine(raw)


def test_a_slot_can_be_had_without_a_record_when_pages_have_run_out() -> None:
    raw = RawArena(SMALLEST, 4)
    live = []
    while (offset := int(kmalloc(raw.words, 8192, 0))) > 0:
        live.append(offset)
    while (offset := int(kmalloc(raw.words, PAGE, 0))) > 0:
        live.append(offset)
    worker = Worker()
    assert worker.do(kmalloc, raw.words, 64, 0) == ENOMEM
    fields = slot_fields(raw, worker.identity) if worker.identity in slots(raw) else [0, NULL_RECORD, NULL_RECORD]
    assert fields == [0, NULL_RECORD, NULL_RECORD]
    raw.validate()
    assert worker.do(kfree, raw.words, live.pop()) == 0
    for offset in live:
        assert worker.do(kfree, raw.words, offset) == 0
    raw.validate()
    worker.end(raw)
    assert_pristine(raw)
