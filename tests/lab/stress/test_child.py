"""The extra process's own side: lines in, lines out, and an end when the parent is gone."""

from __future__ import annotations

import json
import os
import subprocess

import zygote
from stressed import COMPILED

from realalloc.lab.stress import Options
from realalloc.lab.stress.child import read_line

OPTIONS = Options(seconds=300.0, threads=1, arena=8 << 20, sizes="log:8..1KiB", abuse="none", mix="kmalloc")


def test_lines_are_read_one_at_a_time() -> None:
    reader, writer = os.pipe()
    os.write(writer, "größe\nrest".encode())
    os.close(writer)
    assert (read_line(reader), read_line(reader), read_line(reader)) == ("größe", "rest", "")
    os.close(reader)


def test_a_child_whose_parent_goes_away_ends_and_reports() -> None:
    command = ("-m", "realalloc.lab.stress.child")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with zygote.launch(*command, first=COMPILED, text=True, **pipes) as child:
        assert child.stdin is not None
        child.stdin.write(json.dumps({"name": "x", "options": OPTIONS.as_dict()}) + "\ngo\n")
        out, err = child.communicate(timeout=240)  # which closes its standard input
    assert (child.returncode, err) == (0, "")
    said = [json.loads(line) for line in out.splitlines()]
    assert said[0] == {"ready": True} and said[-1]["result"]["ok"] is True
    assert said[-1]["result"]["seconds"] < 200
