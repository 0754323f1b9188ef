"""A server that answers as told and keeps what it is asked: for S3, for STS, as a proxy, with TLS or without."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

LEAK = "the server quotes the key hunter2"


@dataclass
class Answer:
    status: int
    code: str = ""
    body: bytes = b""
    claimed_length: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Script:
    """What the server answers: the first of the answers left for a method; the last one stays."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    endpoint: str = ""

    def next(self, method: str) -> Answer:
        left = self.answers.get(method) or [Answer(200)]
        return left.pop(0) if len(left) > 1 else left[0]

    def headers(self, method: str) -> list[dict[str, str]]:
        """The headers of all requests of a method, names in lower case."""
        return [
            {name.lower(): value for name, value in headers.items()} for m, _, headers in self.requests if m == method
        ]


def assumed(number: int, *, minutes: int = 60) -> Answer:
    """The answer of STS: a pair of that number, for so many minutes."""
    end = dt.datetime.now(dt.timezone.utc) + dt.timedelta(minutes=minutes)
    body = (
        f"<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIA{number}</AccessKeyId>"
        f"<SecretAccessKey>assumed-secret</SecretAccessKey><SessionToken>token{number}</SessionToken>"
        f"<Expiration>{end:%Y-%m-%dT%H:%M:%SZ}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )
    return Answer(200, body=body.encode(), headers={"Content-Type": "text/xml"})


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Script]:
    found = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            found.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            found.requests.append((self.command, self.path, dict(self.headers)))
            told = found.next(self.command)
            body = told.body
            if told.code:
                body = f"<Error><Code>{told.code}</Code><Message>{LEAK}</Message></Error>".encode()
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if told.claimed_length is None else told.claimed_length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            if told.claimed_length is not None:
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_CONNECT = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that do not trust the certificate go away."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    found.endpoint = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
