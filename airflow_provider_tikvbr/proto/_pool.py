"""The private descriptor pool of the generated messages."""

from __future__ import annotations

from google.protobuf import descriptor_pool

# One pool for this package alone: the process-wide default pool refuses a second file or symbol of the same name,
# and other TiKV clients ship messages called metapb.Region too.
POOL = descriptor_pool.DescriptorPool()
