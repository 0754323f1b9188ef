"""The keyspaces that PD knows, and ``keyspacepb.Keyspace``, which tells them.

The service has grown: it loads keyspaces by name since PD 6.4, lists them since 7.3, and loads them by number only in
what follows 9.0 (PD, ``server/keyspace_service.go``). What a release does not know answers UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from airflow_provider_tikvbr.embedded.releases import release_of
from airflow_provider_tikvbr.embedded.state import ClusterState
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.proto import keyspacepb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import MAX_KEYSPACE_ID

DEFAULT_KEYSPACE = "DEFAULT"
STATES = ("ENABLED", "DISABLED", "ARCHIVED", "TOMBSTONE")
KIND = "keyspace"


@dataclass(slots=True, kw_only=True)
class KeyspaceRecord:
    """One keyspace.

    :param state: name of a ``keyspacepb.KeyspaceState``.
    """

    id: int
    name: str
    state: str = STATES[0]

    def message(self) -> keyspacepb_pb2.KeyspaceMeta:
        """As PD tells it."""
        return keyspacepb_pb2.KeyspaceMeta(id=self.id, name=self.name, state=STATES.index(self.state))  # type: ignore[arg-type]


class Keyspaces:
    """All keyspaces; a new cluster has the default one.

    :param state: where they are kept.
    """

    def __init__(self, *, state: ClusterState) -> None:
        self._state = state
        self._all = {0: KeyspaceRecord(id=0, name=DEFAULT_KEYSPACE)}
        for number, value in state.read(KIND).items():
            self._all[int(number)] = KeyspaceRecord(id=int(number), **value)

    def create(self, name: str, *, keyspace_id: int | None = None) -> int:
        """Add a keyspace; one with that name and id may exist already.

        :param keyspace_id: its number; by default the next one.
        :return: its number.
        :raises InvalidOptionError: the name or the number is taken, or the number is out of range.
        """
        found = self.by_name(name)
        if found is not None and keyspace_id in (None, found.id):
            return found.id
        number = max(self._all) + 1 if keyspace_id is None else keyspace_id
        if found is not None or number in self._all:
            raise InvalidOptionError(f"keyspace {name} cannot get id {number}: it is taken", parameter="keyspaces")
        if not 0 <= number <= MAX_KEYSPACE_ID:
            raise InvalidOptionError(f"keyspace id {number} is outside 0..{MAX_KEYSPACE_ID}", parameter="keyspaces")
        self._all[number] = KeyspaceRecord(id=number, name=name)
        self._save(self._all[number])
        return number

    def set_state(self, name: str, state: str) -> None:
        """Change a keyspace's state.

        :param state: name of a ``keyspacepb.KeyspaceState``.
        :raises KeyError: there is no such keyspace.
        :raises ValueError: there is no such state.
        """
        found = self.by_name(name)
        if found is None:
            raise KeyError(name)
        found.state = STATES[STATES.index(state)]
        self._save(found)

    def by_name(self, name: str) -> KeyspaceRecord | None:
        """The keyspace of that name."""
        return next((one for one in self._all.values() if one.name == name), None)

    def by_id(self, keyspace_id: int) -> KeyspaceRecord | None:
        """The keyspace with that number."""
        return self._all.get(keyspace_id)

    def scan(self, start_id: int, limit: int) -> list[KeyspaceRecord]:
        """The keyspaces from a number on, in order.

        :param limit: how many at most; 0 for no limit.
        """
        found = [self._all[number] for number in sorted(self._all) if number >= start_id]
        return found[:limit] if limit else found

    def _save(self, keyspace: KeyspaceRecord) -> None:
        self._state.write(KIND, [(str(keyspace.id), {"name": keyspace.name, "state": keyspace.state})])


class KeyspaceService:
    """The gRPC service.

    :param keyspaces: what it tells.
    :param version: the release that PD poses as.
    :param header: makes a response's header.
    """

    def __init__(
        self,
        keyspaces: Keyspaces,
        *,
        version: str,
        header: Callable[[pdpb_pb2.Error | None], pdpb_pb2.ResponseHeader],
    ) -> None:
        self._keyspaces = keyspaces
        self._header = header
        self._version = version

    def methods(self) -> Mapping[methods.Method[Any, Any], Callable[[Any, Any], Awaitable[Any]]]:
        """What the release knows."""
        release = release_of(self._version)
        table: dict[methods.Method[Any, Any], Callable[[Any, Any], Awaitable[Any]]] = {}
        if release >= (6, 4):
            table[methods.KEYSPACE_LOAD] = self._load
        if release >= (7, 3):
            table[methods.KEYSPACE_GET_ALL] = self._get_all
        if release >= (9, 0) and "-" not in self._version:
            table[methods.KEYSPACE_LOAD_BY_ID] = self._load_by_id
        return table

    async def _load(
        self, request: keyspacepb_pb2.LoadKeyspaceRequest, _context: grpc.aio.ServicerContext
    ) -> keyspacepb_pb2.LoadKeyspaceResponse:
        return self._answer(self._keyspaces.by_name(request.name))

    async def _load_by_id(
        self, request: keyspacepb_pb2.LoadKeyspaceByIDRequest, _context: grpc.aio.ServicerContext
    ) -> keyspacepb_pb2.LoadKeyspaceResponse:
        return self._answer(self._keyspaces.by_id(request.id))

    async def _get_all(
        self, request: keyspacepb_pb2.GetAllKeyspacesRequest, _context: grpc.aio.ServicerContext
    ) -> keyspacepb_pb2.GetAllKeyspacesResponse:
        found = self._keyspaces.scan(request.start_id, request.limit)
        return keyspacepb_pb2.GetAllKeyspacesResponse(header=self._header(None), keyspaces=[k.message() for k in found])

    def _answer(self, found: KeyspaceRecord | None) -> keyspacepb_pb2.LoadKeyspaceResponse:
        if found is None:
            error = pdpb_pb2.Error(type=pdpb_pb2.ENTRY_NOT_FOUND, message="keyspace does not exist")
            return keyspacepb_pb2.LoadKeyspaceResponse(header=self._header(error))
        return keyspacepb_pb2.LoadKeyspaceResponse(header=self._header(None), keyspace=found.message())
