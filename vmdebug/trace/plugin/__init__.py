"""Collects hits with a plugin in QEMU's translator, which does not stop the guest (TCG only).

`plugin.c` runs inside QEMU. `binary` compiles it, and `program` finds the version of it that a QEMU loads.
`wire` is the layout of the memory that vmdebug shares with it, `link` the connection, and `collector` the
`Collector`.
"""
