"""Compiles C expressions at a place of the kernel, from its DWARF, into small programs for a collector.

`syntax` parses, `dwarf` and `types` read the debugging information, `place` finds where a function's code and
variables are, `generate` writes the operations, and `request` puts a whole trace together. What cannot be
compiled raises `NotCompiledError`, with the part of the expression and the reason.
"""
