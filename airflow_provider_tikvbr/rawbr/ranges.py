"""The parts of a key range that are backed up so far, and the gaps between them.

Stores answer in any order, twice, or for regions that have split or merged meanwhile. A newer answer replaces the older
ones that it overlaps, files included: so no pair is counted twice, and what an older answer held beyond the newer one
becomes a gap, which is then backed up again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange
from airflow_provider_tikvbr.tikv.redaction import show_key

# Pieces live in a list of short lists: inserting into one flat list of half a million would move megabytes each time.
BLOCK = 512


@dataclass(frozen=True, slots=True)
class FinishedRange:
    """A backed-up piece of the range.

    :param keys: the piece, in the API version of the cluster.
    :param files: its backup files; none if it holds no live pair.
    """

    keys: KeyRange[ApiKey]
    files: tuple[brpb_pb2.File, ...] = ()


def _start(piece: FinishedRange) -> ApiKey:
    return piece.keys.start


class FinishedRanges:
    """A sorted set of pieces that never overlap."""

    def __init__(self) -> None:
        self._blocks: list[list[FinishedRange]] = []
        self._firsts: list[ApiKey] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[FinishedRange]:
        for block in self._blocks:
            yield from block

    def insert(self, piece: FinishedRange) -> list[FinishedRange]:
        """Add a piece.

        :return: the older pieces that it replaces, in key order.
        :raises ValueError: the piece holds no key.
        """
        keys = piece.keys
        if keys.end and keys.start >= keys.end:
            raise ValueError(f"the range [{show_key(keys.start)}, {show_key(keys.end)}) holds no key")
        replaced = self._remove_overlaps(keys)
        if not self._blocks:
            self._blocks.append([piece])
            self._firsts.append(keys.start)
        else:
            at = max(0, bisect_right(self._firsts, keys.start) - 1)
            block = self._blocks[at]
            block.insert(bisect_right(block, keys.start, key=_start), piece)
            self._firsts[at] = block[0].keys.start
            if len(block) > BLOCK:
                half = len(block) // 2
                self._blocks.insert(at + 1, block[half:])
                self._firsts.insert(at + 1, block[half].keys.start)
                del block[half:]
        self._size += 1
        return replaced

    def remove(self, keys: KeyRange[ApiKey]) -> list[FinishedRange]:
        """Take out the pieces that overlap a range.

        :return: them, in key order.
        """
        return self._remove_overlaps(keys)

    def gaps(self, keys: KeyRange[ApiKey]) -> list[KeyRange[ApiKey]]:
        """The parts of a range that no piece covers, in key order."""
        gaps: list[KeyRange[ApiKey]] = []
        at = keys.start
        for piece in self._from(keys.start):
            start, end = piece.keys.start, piece.keys.end
            if keys.end and start >= keys.end:
                break
            if start > at:
                gaps.append(KeyRange(at, start))
            if not end:
                return gaps
            # The pieces are sorted and never overlap.
            at = end
        if not keys.end or at < keys.end:
            gaps.append(KeyRange(at, keys.end))
        return gaps

    def files(self) -> Iterator[brpb_pb2.File]:
        """The files of all pieces, in key order."""
        for piece in self:
            yield from piece.files

    def _locate(self, key: ApiKey) -> tuple[int, int]:
        """Block and place of the first piece that ends after a key; one block too far if there is none."""
        at = bisect_right(self._firsts, key) - 1
        if at < 0:
            return 0, 0
        block = self._blocks[at]
        place = bisect_right(block, key, key=_start) - 1
        end = block[place].keys.end
        if not end or end > key:
            return at, place
        return (at, place + 1) if place + 1 < len(block) else (at + 1, 0)

    def _from(self, key: ApiKey) -> Iterator[FinishedRange]:
        at, place = self._locate(key)
        for block in self._blocks[at : at + 1]:
            yield from block[place:]
        for block in self._blocks[at + 1 :]:
            yield from block

    def _remove_overlaps(self, keys: KeyRange[ApiKey]) -> list[FinishedRange]:
        removed: list[FinishedRange] = []
        at, place = self._locate(keys.start)
        while at < len(self._blocks):
            block = self._blocks[at]
            # The pieces are sorted, so those that overlap stand side by side.
            stop = place
            while stop < len(block) and not (keys.end and block[stop].keys.start >= keys.end):
                stop += 1
            removed += block[place:stop]
            more = stop == len(block)
            del block[place:stop]
            if block:
                self._firsts[at] = block[0].keys.start
                at += 1
            else:
                del self._blocks[at], self._firsts[at]
            if not more:
                break
            place = 0
        self._size -= len(removed)
        return removed
