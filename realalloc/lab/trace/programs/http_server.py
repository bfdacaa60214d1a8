"""An HTTP server on loopback and its clients: documents are put, fetched and searched as JSON, a thread a connection."""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SEED = 3
CLIENTS, REQUESTS = 4, 12
WORDS = ["page", "block", "order", "zone", "slab", "cache", "sheaf", "lock", "pool", "lease", "arena", "trace"]

documents: dict[str, dict[str, Any]] = {}
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """Answers PUT /name, GET /name and GET /?word."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer leaves in one piece

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def answer(self, code: int, body: Any) -> None:
        """Send JSON."""
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self) -> None:
        """Store a document."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            documents[self.path] = body
        self.answer(201, {"stored": self.path, "words": len(body["text"].split())})

    def do_GET(self) -> None:
        """Fetch a document, or the names of those with a word."""
        path, _, word = self.path.partition("?")
        with lock:
            if word:
                self.answer(200, sorted(name for name, body in documents.items() if word in body["text"]))
            elif path in documents:
                self.answer(200, documents[path])
            else:
                self.answer(404, {"missing": path})


def client(number: int, port: int, requests: int, done: Callable[[int], None]) -> None:
    """Ask again and again over one connection; tell how many answers came."""
    dice = random.Random(SEED + number)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    answers = 0
    for turn in range(requests):
        name = f"/{number}/{dice.randrange(20)}"
        kind = dice.random()
        if kind < 0.4:
            text = " ".join(dice.choices(WORDS, k=dice.randrange(20, 400)))
            connection.request(
                "PUT", name, json.dumps({"text": text, "turn": turn}), {"Content-Type": "application/json"}
            )
        else:
            connection.request("GET", name if kind < 0.8 else f"/?{dice.choice(WORDS)}")
        response = connection.getresponse()
        answers += len(json.loads(response.read())) >= 0
    connection.close()
    done(answers)


def main(scale: int) -> None:
    """Serve ``scale`` times as many requests to a few clients at once."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    answers: list[int] = []
    given = [(number, server.server_port, REQUESTS * scale, answers.append) for number in range(CLIENTS)]
    clients = [threading.Thread(target=client, args=each) for each in given]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    server.shutdown()
    serving.join()
    server.server_close()
    print(f"{sum(answers)} answers, {len(documents)} documents")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
