"""Traces: what is traced, the hits, and the protocol of what collects them.

`hit` and `probe` are plain values, `collector` is the protocol, `trace` the sequence of hits that users
see. A collector lives in the room of the tool it drives: GDB's is `vmdebug.debugger.collector`.
"""
