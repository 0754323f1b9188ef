"""What was recorded between the real tikv-br and real PD and TiKV, and its translation to another cluster's ids.

Each file under tests/e2e/recordings holds one run of tikv-br: the command first, then every gRPC message and PD HTTP
exchange in order. Ids, epochs, addresses and paths differ between clusters, so a recorded request is sent with those of
the cluster at hand: a region is found again by its start key, a store by its place among the stores.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from airflow_provider_tikvbr.proto import methods

ROOT = Path(__file__).resolve().parent.parent / "e2e" / "recordings"
METHODS = {m.path: m for m in vars(methods).values() if isinstance(m, methods.Method)}


@dataclass(frozen=True, slots=True)
class Call:
    """One finished gRPC call.

    :param number: its number in the recording.
    :param server: ``pd@port`` or ``tikv@port``.
    :param code: name of the gRPC status it ended with; empty if the client went away first.
    """

    number: int
    server: str
    method: methods.Method[Any, Any]
    requests: tuple[Message, ...]
    responses: tuple[Message, ...]
    code: str


@dataclass(frozen=True, slots=True)
class Http:
    """One PD HTTP exchange.

    :param target: path and query.
    :param body: of the request.
    :param answer: of the response.
    """

    verb: str
    target: str
    body: str
    status: int
    answer: str


def names() -> list[str]:
    """Every recorded run."""
    return sorted(p.name.removesuffix(".jsonl.gz") for p in ROOT.glob("*.jsonl.gz"))


def rows(name: str) -> list[dict[str, Any]]:
    """The lines of one recording."""
    with gzip.open(ROOT / f"{name}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def calls(name: str) -> list[Call]:
    """The gRPC calls of one run, in the order in which their first requests were sent."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows(name):
        if "method" not in row or row["method"] not in METHODS:
            continue
        method = METHODS[row["method"]]
        call = found.setdefault(
            (row["server"], row["call"]), {"method": method, "requests": [], "responses": [], "code": ""}
        )
        if row["dir"] == "req":
            call["requests"].append(method.request.FromString(base64.b64decode(row["b64"])))
            call.setdefault("t", row["t"])
        elif row["dir"] == "resp":
            call["responses"].append(method.response.FromString(base64.b64decode(row["b64"])))
        elif row["dir"] == "end":
            call["code"] = row["code"]
    ordered = sorted((c.get("t", 0.0), key, c) for key, c in found.items() if c["requests"])
    return [
        Call(number, server, c["method"], tuple(c["requests"]), tuple(c["responses"]), c["code"])
        for _, (server, number), c in ordered
    ]


def http(name: str) -> Iterator[Http]:
    """The PD HTTP exchanges of one run."""
    asked: tuple[str, str, str] | None = None
    for row in rows(name):
        if "http" not in row:
            continue
        head, _, body = row["text"].partition("\r\n\r\n")
        first = head.split("\r\n")[0].split(" ")
        if row["http"] == "req":
            asked = (first[0], first[1], body)
        elif asked is not None:
            answer = _unchunk(body) if "Transfer-Encoding: chunked" in head else body
            yield Http(*asked, status=int(first[1]), answer=answer)
            asked = None


def _unchunk(body: str) -> str:
    """Join the chunks of an HTTP body; sizes count bytes, and the recorded texts are ASCII."""
    found = ""
    while body:
        size, _, rest = body.partition("\r\n")
        length = int(size, 16)
        found, body = found + rest[:length], rest[length:].removeprefix("\r\n")
        if not length:
            break
    return found


def shape(message: Message, prefix: str = "") -> set[str]:
    """The paths of all fields that are set, whatever their values; a list counts as its elements together."""
    found: set[str] = set()
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        found.add(path)
        if field.message_type is not None:
            for one in [value] if isinstance(value, Message) else value:
                found |= shape(one, f"{path}.")
    return found
