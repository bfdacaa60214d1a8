"""The documentation is tested: its snippets run, its links resolve, its tables say what layout.py says.

A page is read top to bottom by one child interpreter in an empty directory, all of its fenced blocks in one namespace:
``>>>`` blocks are doctests (with ELLIPSIS), ``python`` blocks are executed. ``<!-- not run: why -->`` above a block skips it.
"""

from __future__ import annotations

import doctest
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from support import JIT, run_child

import realalloc as ra
from realalloc.errors import BROKEN_INVARIANTS
from realalloc.mm import layout

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<skip><!-- not run: .+ -->\n+)?```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
# Names of layout.py that docs/memory-layout.md must explain.
EXPLAINED = re.compile(r"(H|Z|M|C|CF|PG|KIND|PAGE|CACHE|V|AREA|P|B|BACKING|ZONE|HUGE|Y|PSI|TRG)_[A-Z0-9_]+")
NOT_FIELDS = {"PAGE_SHIFT", "PAGE_BYTES", "PAGE_WORDS", "CACHE_WORDS", "CACHE_NAME_BYTES", "ZONE_WORDS"}
NOT_FIELDS |= {"M_WORDS", "CACHE_SHIFT", "CACHE_MASK", "ZONE_SHIFT", "ZONE_MASK"}


class Snippet(NamedTuple):
    """One fenced block that runs."""

    line: int
    body: str

    @property
    def is_doctest(self) -> bool:
        return self.body.lstrip().startswith(">>>")


def snippets(page: Path) -> list[Snippet]:
    """Find the Python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match["language"] in ("python", "pycon") and match["skip"] is None:
            found.append(Snippet(text.count("\n", 0, match.start("body")), match["body"]))
    return found


def run_page(name: str, directory: str) -> None:
    """Run the snippets of a page; in a child. Ends the process with 1 where a doctest fails."""
    os.chdir(directory)
    page = Path(name)
    namespace: dict[str, object] = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for snippet in snippets(page):
        if "@cfunc" in snippet.body and not JIT:
            continue  # numba makes C functions without jit, too, but what they call is Python then
        if snippet.is_doctest:
            test = doctest.DocTestParser().get_doctest(snippet.body, {}, page.name, str(page), snippet.line)
            test.globs = namespace
            runner.run(test, clear_globs=False)
        else:
            exec(compile("\n" * snippet.line + snippet.body, str(page), "exec"), namespace)
    sys.exit(1 if runner.summarize(verbose=False).failed else 0)


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """Name a heading as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def everything() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=page_id)
def test_snippets_run(page: Path, tmp_path: Path) -> None:
    """Every snippet does what the page says, and nothing is said on stderr."""
    if page.name == "numpy.md" and not JIT:
        pytest.skip("NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import test_docs\n"
    code += f"test_docs.run_page({str(page)!r}, {str(tmp_path)!r})"
    first = "import stressed; stressed.compiled()" if page.name == "stress.md" else ""
    child = run_child(code, "-W", "always::ResourceWarning", first=first, fresh=page.name == "README.md")
    assert (child.returncode, child.stderr) == (0, ""), f"{child.stdout[-6000:]}\n{child.stderr[-6000:]}"


def test_there_are_snippets() -> None:
    """The finder of snippets finds them."""
    assert {"architecture.md", "memory-layout.md", "jit.md"} <= {page.name for page in PAGES if snippets(page)}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page: Path) -> None:
    """Every relative link names a file, and a heading of it if it has a fragment."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        if fragment:
            assert fragment in {slug(h) for h in re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)}, (
                f"{target}: no such heading"
            )


def test_every_page_is_in_the_index() -> None:
    """docs/README.md links every other page."""
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", index)}
    assert {page for page in DOCS.rglob("*.md") if page.name != "README.md"} <= linked


def test_everything_public_is_mentioned() -> None:
    """Public names, status codes of walkers, files of the jitted room."""
    text = everything()
    wanted = [*ra.__all__, *(name for name in vars(layout) if name.startswith("BAD_"))]
    wanted += [f"mm/{path.name}" for path in (ROOT / "realalloc" / "mm").glob("*.py")]
    assert [name for name in wanted if not re.search(rf"\b{re.escape(name)}\b", text)] == []


def test_every_file_that_is_named_exists() -> None:
    """Paths in the text are paths of the repository."""
    named = set(re.findall(r"`((?:realalloc|tests|docs|bench|mm)/[\w/]+\.\w+)`", everything()))
    assert [
        path for path in sorted(named) if not (ROOT / path).exists() and not (ROOT / "realalloc" / path).exists()
    ] == []


def test_every_word_is_explained_and_numbered_as_it_is() -> None:
    """docs/memory-layout.md names every field, and its tables give the numbers of layout.py."""
    text = (DOCS / "memory-layout.md").read_text(encoding="utf-8")
    fields = {name for name in vars(layout) if EXPLAINED.fullmatch(name)} - NOT_FIELDS
    assert sorted(name for name in fields if f"`{name}`" not in text) == []
    rows = re.findall(r"^\| (-?\d+) \| `(\w+)`", text, re.MULTILINE)
    assert len(rows) > 80
    assert [(number, name) for number, name in rows if getattr(layout, name) != int(number)] == []


def test_every_broken_invariant_is_explained() -> None:
    """docs/invariants.md lists each BAD_* with its number and the walker whose file reports it."""
    text = (DOCS / "invariants.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(BAD_\w+)` \| (-\d+) \|", text, re.MULTILINE))
    codes = {name: value for name, value in vars(layout).items() if name.startswith("BAD_")}
    assert {name: int(number) for name, number in rows.items()} == codes
    assert set(codes.values()) == set(BROKEN_INVARIANTS)
    reported = re.findall(r"^\| `(BAD_\w+)` \|.*`((?:mm/)?\w+\.py)` \|$", text, re.MULTILINE)
    assert {name for name, _ in reported} == set(codes)
    for name, file in reported:
        source = (ROOT / "realalloc" / file).read_text(encoding="utf-8")
        assert re.search(rf"return [^#\n]*\b{name}\b|status = {name}\b|\b{name}\)", source), (name, file)


def test_only_names_that_exist_are_quoted() -> None:
    """A quoted name that looks like one of layout.py is one."""
    quoted = set(re.findall(r"`((?:H|Z|M|Y|C|CF|PG|KIND|V|AREA|P|B|BAD|BACKING)_[A-Z0-9_]+)`", everything()))
    assert sorted(name for name in quoted if not hasattr(layout, name)) == []
