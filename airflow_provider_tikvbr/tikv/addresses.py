"""Where to reach what a cluster calls by names of its own network.

PD tells clients where its members and the stores are, by the addresses that they advertise to each other. A worker
outside that network (other Kubernetes cluster, NAT, port-forward) needs others: the address map says which.

It changes where a connection goes and nothing else. Certificates are still checked against the host that the cluster
tells, for that is the name they were issued for; so is the name that a server is asked for in HTTP and HTTP/2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from airflow_provider_tikvbr.exceptions import InvalidOptionError

PARAMETER: Final = "address_map"
FORM: Final = "write host:port=host:port or host=host, several separated by commas"
MAX_PORT: Final = 65535
# A name, an IPv4 address, or an IPv6 address in brackets; then perhaps a port.
ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One server: what the cluster calls it, and where connections to it go.

    :param address: ``host:port`` as the cluster tells it; certificates are checked against this host.
    :param reach: ``host:port`` to connect to.
    """

    address: str
    reach: str

    @classmethod
    def at(cls, address: str) -> Target:
        """A server that is reached where it says."""
        return cls(address=address, reach=address)

    def __str__(self) -> str:
        """For messages: both addresses where they differ."""
        return f"{self.address} (reached at {self.reach})" if self.is_mapped else self.address

    @property
    def is_mapped(self) -> bool:
        """Whether connections go elsewhere than the cluster says."""
        return self.address != self.reach

    @property
    def host(self) -> str:
        """The host that the cluster tells, without the brackets of an IPv6 address."""
        return split_address(self.address)[0].strip("[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressMap:
    """Other addresses for those that a cluster tells. Make it with :meth:`parse`.

    :param entries: pairs of an address as the cluster tells it and one to connect to instead. Where the first has a
        port, exactly that address is meant; where it has none, every port of the host. Where the second has no port,
        the port stays the same.
    """

    entries: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, value: str | Mapping[str, str] | None) -> AddressMap:
        """Read what a user gave.

        :param value: text such as ``tikv-0:20160=10.0.0.5:30160,pd-0=10.0.0.5``, entries separated by commas or line
            ends; or the same as a mapping; nothing for no map.
        :raises InvalidOptionError: an entry cannot be read, or two contradict each other.
        """
        if not value:
            return cls()
        entries: dict[str, str] = {}
        for told, reach in _mapping(value) if isinstance(value, Mapping) else _text(value):
            one, other = _read(told), _read(reach)
            if ":" not in _rest(one) and ":" in _rest(other):
                raise _refused(
                    f"{told}={reach} in the address map gives a port on the right side only: give one on the left too, or on neither"
                )
            if entries.setdefault(one, other) != other:
                raise _refused(f"{told} is mapped to {entries[one]} and to {other} in the address map: give it once")
        return cls(entries=tuple(entries.items()))

    def __bool__(self) -> bool:
        """Whether it maps anything."""
        return bool(self.entries)

    def target(self, address: str) -> Target:
        """How to reach a server.

        :param address: ``host:port``, as the cluster tells it.
        """
        host, port = split_address(address)
        host = host.lower()
        entries = dict(self.entries)
        found = entries.get(f"{host}:{port}", entries.get(host))
        if found is None:
            return Target.at(address)
        return Target(address=address, reach=found if ":" in _rest(found) else f"{found}:{port}")

    def behind(self, reach: str) -> Target:
        """Which server answers at an address that a user gave, such as a PD endpoint: connections go just there.

        Where the map leads one single address there, the certificate is that server's, and is checked for its name.

        :param reach: ``host:port`` to connect to.
        """
        host, port = split_address(reach)
        exact = [
            told for told, other in self.entries if ":" in _rest(told) and self.target(told).reach == reach.lower()
        ]
        hosts = [f"{told}:{port}" for told, other in self.entries if ":" not in _rest(told) and other == host.lower()]
        found = exact or hosts
        return Target(address=found[0], reach=reach) if len(found) == 1 else Target.at(reach)


NO_ADDRESS_MAP: Final = AddressMap()


def split_address(address: str) -> tuple[str, str]:
    """Host and port of ``host:port``; an IPv6 host keeps its brackets."""
    host, _, port = address.rpartition(":")
    return host, port


def _rest(address: str) -> str:
    """What may hold the colon before a port: an address without the brackets of IPv6 and what is inside."""
    return address.rpartition("]")[2]


def _text(value: str) -> Iterable[tuple[str, str]]:
    for part in re.split(r"[,\n]", value):
        entry = part.strip()
        if not entry:
            continue
        told, mark, reach = entry.partition("=")
        if not mark:
            raise _refused(f"{entry!r} is no entry of an address map: {FORM}")
        yield told.strip(), reach.strip()


def _mapping(value: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for told, reach in value.items():
        # It may come from JSON, where a value can be anything.
        if not isinstance(told, str) or not isinstance(reach, str):
            raise _refused(f"the entry of {told!r} in the address map is not text: {FORM}")
        yield told.strip(), reach.strip()


def _read(text: str) -> str:
    match = ADDRESS.fullmatch(text)
    port = match["port"] if match else None
    if match is None or (port is not None and not 0 < int(port) <= MAX_PORT):
        raise _refused(f"{text.rpartition('@')[2]!r} in the address map is neither host:port nor a host: {FORM}")
    host = match["host"].lower()
    return host if port is None else f"{host}:{int(port)}"


def _refused(message: str) -> InvalidOptionError:
    return InvalidOptionError(message, parameter=PARAMETER)
