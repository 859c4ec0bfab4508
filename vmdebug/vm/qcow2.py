"""An empty qcow2 image, for snapshots; see docs/interop/qcow2.rst of QEMU.

QEMU can make one itself, with the job `blockdev-create`, which never ends while QEMU 7.2 replays.
"""

from __future__ import annotations

import struct

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_DISK_BYTES = 1 << 20
_REFCOUNT_TABLE, _REFCOUNT_BLOCK, _L1_TABLE, _END = 1, 2, 3, 4
"""Numbers of the image's clusters; the first has the header."""

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_REFCOUNT_ORDER = 4


def empty() -> bytes:
    """Return an image of an empty disk of 1 MiB, without snapshots."""
    header = _HEADER.pack(
        b"QFI\xfb",
        3,  # version
        0,  # offset of the backing file's name
        0,  # its size
        _CLUSTER_BITS,
        _DISK_BYTES,
        0,  # encryption
        1,  # entries of the L1 table
        _L1_TABLE * _CLUSTER,
        _REFCOUNT_TABLE * _CLUSTER,
        1,  # clusters of the refcount table
        0,  # snapshots
        0,  # offset of the table of snapshots
        0,  # incompatible features
        0,  # compatible features
        0,  # autoclear features
        _REFCOUNT_ORDER,
        _HEADER.size,
    )
    table = struct.pack(">Q", _REFCOUNT_BLOCK * _CLUSTER)
    block = struct.pack(">H", 1) * _END
    return b"".join(part.ljust(_CLUSTER, b"\0") for part in (header, table, block, b""))
