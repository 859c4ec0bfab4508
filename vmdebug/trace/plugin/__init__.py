"""Collects hits by a plugin in QEMU's translator, which does not stop the guest (TCG only).

`plugin.c` runs inside QEMU. `binary` compiles it, and `program` chooses it for a QEMU. `wire` is the layout
of the memory that both share, `link` the connection, and `collector` the `Collector`.
"""
