"""Traces: probes, hits, and the protocol of collectors.

`hit` and `probe` are plain values, `collector` is the protocol, and `trace` is the sequence of hits that
users see. A collector is in the package of its tool: GDB's is `vmdebug.debugger.collector`.
"""
