"""What a restore that gives up has left: said in one sentence that names stores, regions and parts of files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_tikvbr.exceptions import BudgetExceededError, StoreUnavailableError, TransientError
from airflow_provider_tikvbr.tikv.redaction import show_key

if TYPE_CHECKING:
    from airflow_provider_tikvbr.rawbr.pieces import Piece

# Of reasons, regions and parts of files so many are named; the others are counted.
NAMED = 3


@dataclass(slots=True)
class _Reason:
    """Why some pieces could not go on.

    :param error: what the last of them met.
    """

    error: TransientError
    pieces: int = 0
    regions: set[int] = field(default_factory=set)

    def __str__(self) -> str:
        where = f" in {_some([f'region {region}' for region in sorted(self.regions)])}" if self.regions else ""
        return f"{self.error} (which keeps {self.pieces} of them{where})"


def gave_up(pieces: Sequence[Piece], *, budget_s: float) -> BudgetExceededError:
    """The error of a restore that made no progress for too long.

    :param pieces: what is left.
    :param budget_s: for how long there was no progress, in seconds.
    """
    reasons = _reasons(pieces)
    parts = [_part(piece) for piece in sorted(pieces, key=lambda piece: piece.keys.start)]
    files = {id(piece.work) for piece in pieces}
    fields: dict[str, Any] = {}
    if reasons:
        error = reasons[0].error
        fields = {name: getattr(error, name) for name in ("region_id", "store_id", "address", "method", "code")}
        fields["region_id"] = fields["region_id"] or min(reasons[0].regions, default=None)
    return BudgetExceededError(
        f"gave up after {budget_s:g} s without progress, with {_count(len(pieces), 'piece')} of"
        f" {_count(len(files), 'file')} left: {_some([str(reason) for reason in reasons], between='; ')}."
        f" Left are {_some(parts)}",
        budget_s=budget_s,
        **fields,
    )


def _reasons(pieces: Iterable[Piece]) -> list[_Reason]:
    """Why pieces could not go on, the most frequent reason first; those that have not been tried have none."""
    found: dict[object, _Reason] = {}
    for piece in pieces:
        error = piece.error
        if error is None:
            continue
        # A dead store answers in many words.
        key = error.store_id if isinstance(error, StoreUnavailableError) else (type(error), error.store_id)
        reason = found.setdefault(key, _Reason(error))
        reason.pieces += 1
        if piece.region_id is not None:
            reason.regions.add(piece.region_id)
    return sorted(found.values(), key=lambda reason: -reason.pieces)


def _part(piece: Piece) -> str:
    start, end = show_key(piece.keys.start, empty="the beginning"), show_key(piece.keys.end, empty="the end")
    return f"[{start}, {end}) of {piece.work.planned.file.name}"


def _some(texts: Sequence[str], *, between: str = ", ") -> str:
    more = f"{between}and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return between.join(texts[:NAMED]) + more


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
