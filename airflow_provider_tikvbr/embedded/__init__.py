"""A whole cluster in one process: a placement driver and stores that speak the real protocol on real ports.

It is there to try the package out and to test it, on a machine without TiKV. Nothing else in the package imports it
but the command line.
"""

from __future__ import annotations
