"""A server that speaks Google Cloud Storage's JSON API, and one that answers as told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from gcp_storage_emulator.exceptions import Conflict
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage


class _Conditional(Storage):  # type: ignore[misc]
    """Keeps the condition of an upload, which the emulator passes over: that there is no such object yet."""

    only_new = refused = False

    def create_file(self, bucket_name: str, file_name: str, *more: Any, **others: Any) -> None:
        if self.only_new and self.objects.get(bucket_name, {}).get(file_name):
            self.refused = True
            raise Conflict("conditionNotMet")
        super().create_file(bucket_name, file_name, *more, **others)


class _Handler(RequestHandler):  # type: ignore[misc]
    def parse_request(self) -> bool:
        parsed: bool = super().parse_request()
        self.storage.refused = False
        self.storage.only_new = parsed and parse_qs(urlsplit(self.path).query).get("ifGenerationMatch") == ["0"]
        return parsed

    def send_response(self, code: int, message: str | None = None) -> None:
        super().send_response(412 if self.storage.refused else code, message)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class GcsServer:
    endpoint: str
    storage: Any

    def make_bucket(self, name: str) -> None:
        buckets.create_bucket(name, self.storage)

    def keys(self, bucket: str) -> list[str]:
        return sorted(self.storage.objects.get(bucket, {}))

    def attributes(self, bucket: str, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self.storage.get_file_obj(bucket, key)
        return found

    def url(self, bucket: str, prefix: str = "backups/monday", more: str = "") -> str:
        return f"gcs://{bucket}/{prefix}?endpoint={self.endpoint}{more}"


@contextmanager
def _serving(server: HTTPServer) -> Iterator[str]:
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def gcs_emulator() -> Iterator[GcsServer]:
    storage = _Conditional(use_memory_fs=True)
    # One request at a time: the emulator has no locks.
    with _serving(HTTPServer(("127.0.0.1", 0), partial(_Handler, storage))) as endpoint:
        yield GcsServer(endpoint, storage)


@dataclass
class Answer:
    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    claimed_length: int | None = None


def refusal(status: int, reason: str = "", message: str = "the server quotes hunter2") -> Answer:
    error = {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}
    return Answer(status, json.dumps({"error": error}).encode(), {"Content-Type": "application/json"})


@dataclass
class Script:
    """What the server answers: the first of those left for a method; the last one stays. ``/token`` has its own."""

    answers: dict[str, list[Answer]]
    requests: list[tuple[str, str, dict[str, str]]]
    bodies: list[bytes]
    endpoint: str = ""

    def next(self, method: str) -> Answer:
        left = self.answers.get(method) or [Answer(200)]
        return left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def scripted() -> Iterator[Script]:
    found = Script({}, [], [])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            found.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            found.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
            told = found.next("TOKEN" if self.path == "/token" else self.command)
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            length = len(told.body) if told.claimed_length is None else told.claimed_length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(told.body)
            if told.claimed_length is not None:
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as endpoint:
        found.endpoint = endpoint
        yield found


def service_account(token_uri: str = "https://oauth2.googleapis.com/token") -> dict[str, str]:
    """The document of a new key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "id",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "client_email": "backup@project.iam.gserviceaccount.com",
        "token_uri": token_uri,
    }
