"""Where it runs: every other place is refused with one sentence, and nothing else is asked first."""

from __future__ import annotations

import ctypes
import sys

import pytest
from support import MIB

import realalloc as ra
from realalloc.supported import refuse_unsupported

ELSEWHERE = {
    "darwin": ((sys, "platform", "darwin"), "Linux, not darwin"),
    "win32": ((sys, "platform", "win32"), "Linux, not win32"),
    "pypy": ((sys.implementation, "name", "pypy"), "CPython, not pypy"),
    "no GIL": (
        (sys, "_is_gil_enabled", lambda: False),
        "a CPython with the GIL; free-threaded builds are not supported",
    ),
    "subinterpreter": (
        (ctypes.pythonapi, "PyInterpreterState_GetID", lambda _state: 3),
        "the main interpreter; subinterpreters are not supported",
    ),
}


def test_here_it_is() -> None:
    refuse_unsupported()


@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("ask", [refuse_unsupported, lambda: ra.Arena(MIB)], ids=["asked", "by an arena"])
def test_anywhere_else_is_refused_with_one_clear_sentence(
    where: str, ask: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, why = ELSEWHERE[where]
    with monkeypatch.context() as changed:
        changed.setattr(*patch, raising=False)
        with pytest.raises(RuntimeError) as info:
            ask()  # type: ignore[operator]
    assert str(info.value) == f"realalloc needs {why}"
    refuse_unsupported()


def test_a_build_that_has_its_gil_may_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    refuse_unsupported()


def test_the_first_reason_is_the_one_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for patch, _ in ELSEWHERE.values():
        monkeypatch.setattr(*patch, raising=False)
    with pytest.raises(RuntimeError, match="^realalloc needs Linux, not win32$"):
        refuse_unsupported()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="interp-run needs a module that 3.11 has under another name")
def test_a_real_subinterpreter_is_refused() -> None:
    try:
        import _interpreters as interpreters  # 3.13
    except ImportError:
        import _xxsubinterpreters as interpreters
    made = interpreters.create()
    try:
        code = (
            "import sys\n"
            f"sys.path[:] = {sys.path!r}\n"
            "try:\n"
            "    from realalloc.supported import refuse_unsupported\n"
            "except ImportError:\n"  # ctypes itself may refuse
            "    pass\n"
            "else:\n"
            "    try: refuse_unsupported()\n"
            "    except RuntimeError as error: assert 'the main interpreter' in str(error)\n"
            "    else: raise AssertionError('not refused')\n"
        )
        problem = interpreters.run_string(made, code)
        assert problem is None, problem
    finally:
        interpreters.destroy(made)
