"""Traces: probes, hits, and the protocol of collectors.

`hit` and `probe` are plain values, `collector` is the protocol, and `trace` is the sequence of hits that
users see. `selecting` selects hits, `merged` has several collectors share a trace, `summary` and `perfetto`
show hits. The collectors are GDB's, `vmdebug.debugger.collector`, and that of the plugin in QEMU, `plugin`;
`expressions` compiles C expressions for the plugin, and `unwinding` makes backtraces of its copies of stacks.
"""
