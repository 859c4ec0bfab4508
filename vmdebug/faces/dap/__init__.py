"""A debug adapter for guests: the Debug Adapter Protocol (DAP), on top of the adapter in GDB 14 and newer.

See https://microsoft.github.io/debug-adapter-protocol/specification, and "Debugger Adapter Protocol" in GDB's
manual. An editor sends requests to this process. Those that start, find, restart and leave a guest are
handled here; the rest is passed to GDB and back, with the changes that a kernel needs.
"""
