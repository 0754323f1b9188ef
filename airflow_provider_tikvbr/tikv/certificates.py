"""The certificates of a cluster's connections, as they are now: they are renewed on disk while a job runs.

Kubernetes and cert-manager replace the files of a mounted secret; a job of hours must not fail because the certificates
that it read at its start have expired, or because the servers have new ones of a new CA meanwhile.
"""

from __future__ import annotations

import logging
import time

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.options import TlsOptions

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class Certificates:
    """What every connection to one cluster asks for its certificates.

    :param tls: the certificates as they were read first; None means plain connections.
    """

    def __init__(self, tls: TlsOptions | None) -> None:
        self._tls = tls
        self._seen = tuple(file.stamp for file in tls.files) if tls is not None else ()
        self._next_look = 0.0

    @classmethod
    def of(cls, tls: Certificates | TlsOptions | None) -> Certificates:
        """The same certificates, or a keeper of these alone."""
        return tls if isinstance(tls, Certificates) else cls(tls)

    def current(self, *, look: bool = False) -> TlsOptions | None:
        """The certificates to use for a new connection.

        The files are looked at once a second at most. While what they hold does not fit together, as in the middle of
        a renewal, the certificates read before stay in use.

        :param look: whether to look now, however long ago the last look was.
        :return: the same object for as long as the certificates are the same; None for plain connections.
        """
        if self._tls is None or not self._tls.files:
            return self._tls
        now = time.monotonic()
        if look or now >= self._next_look:
            self._next_look = now + LOOK_EVERY_S
            self._tls = self._renewed(self._tls)
        return self._tls

    def _renewed(self, tls: TlsOptions) -> TlsOptions:
        stamps = tls.stamps()
        if stamps == self._seen:
            return tls
        self._seen = stamps
        try:
            renewed = tls.renewed()
        except InvalidOptionError as err:
            log.warning("the renewed certificates cannot be used, and those read before stay in use: %s", err)
            return tls
        if renewed == tls:
            return tls
        log.info("the certificates have been renewed: %s", ", ".join(file.path for file in renewed.files))
        return renewed
