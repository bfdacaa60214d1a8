"""The examples in docs/examples run."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def test_the_echo_server_serves_and_ends_quietly() -> None:
    command = [sys.executable, str(EXAMPLES / "echo_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        port = int(child.stdout.readline().split()[-1])
        with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("rb") as answer:
            sock.sendall(b"hello\n")
            assert answer.readline() == b"hello\n"
            child.send_signal(signal.SIGINT)
            try:
                _, said = child.communicate(timeout=60)
            finally:
                child.kill()
    assert "KeyboardInterrupt" in said and "Warning" not in said and "BufferError" not in said
