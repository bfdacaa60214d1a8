"""The schedule, and each act alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import realalloc as ra
from realalloc.lab.stress import ABUSES, Options
from realalloc.lab.stress.abuse import Abuse
from realalloc.lab.stress.pelting import Pelting
from realalloc.lab.stress.site import Site
from realalloc.lab.stress.worker import Worker
from realalloc.mm import layout

OFTEN = 10_000


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(Options(threads=1, arena=4 << 20, abuse=getattr(request, "param", f"trim={OFTEN}")))
    yield made
    made.finish()
    made.close()


def all_due(abuse: Abuse) -> None:
    abuse._due = dict.fromkeys(abuse._due, 0.0)


@pytest.mark.parametrize("site", [",".join(f"{act}=0.001" for act in ABUSES)], indirect=True)
def test_every_act_is_done_when_it_is_due(site: Site) -> None:
    worker = Worker(site, 0)
    with Pelting(1) as pelting:
        abuse = Abuse(site, [worker], pelting)
        assert abuse.step() > 100 and abuse.did == {}
        all_due(abuse)
        abuse.step()
        assert abuse.did == dict.fromkeys(ABUSES, 1)
    assert worker.reborn
    assert abuse.books == [] and abuse.children == []
    assert site.arena.stats().leases == 0


def test_what_was_missed_is_not_made_up_for(site: Site) -> None:
    abuse = Abuse(site, [], None)
    all_due(abuse)
    abuse.step()
    abuse.step()
    assert abuse.did["trim"] <= 2


@pytest.mark.parametrize("site", ["validate=1,fork=1"], indirect=True)
def test_what_walkers_and_children_find_is_kept(site: Site) -> None:
    abuse = Abuse(site, [], None)
    site.arena.words[layout.H_BAD_FREES] += 1
    all_due(abuse)
    abuse.step()
    site.arena.words[layout.H_BAD_FREES] -= 1
    assert "the header is damaged" in abuse.books[0] and "exit 1" in abuse.children[0]


@pytest.mark.parametrize("site", ["squeeze=1"], indirect=True)
def test_a_squeeze_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(_seconds: float) -> None:
        with pytest.raises(ra.OutOfMemory):
            site.arena.kmalloc(8192)
        seen.append(site.arena.stats().free)

    monkeypatch.setattr("realalloc.lab.stress.abuse.time.sleep", look)
    abuse = Abuse(site, [], None)
    all_due(abuse)
    abuse.step()
    assert seen == [0]


@pytest.mark.parametrize("site", ["signal=5"], indirect=True)
def test_no_signals_outside_of_the_main_thread(site: Site) -> None:
    abuse = Abuse(site, [], None)
    all_due(abuse)
    assert abuse.step() > 0 and abuse.did == {}
