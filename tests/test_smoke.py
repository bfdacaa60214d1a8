import realalloc as ra


def test_smoke(arena: ra.Arena) -> None:
    buf = arena.kmalloc(1500)
    assert len(buf) == 1500
    arena.kfree(buf)
