"""Compiles C expressions at a place in the kernel, with its DWARF, into small programs for a collector.

`syntax` parses expressions, `dwarf` and `types` read where code and variables are and which types they have,
`generate` writes the operations, `kernel_facts` those for the task and the time, and `compiled` puts a whole
trace together. `lines` is the line table, `resolving` finds the places that patterns and lines mean, and
`listing` lists places. `NotCompiledError` tells which part of an expression cannot be compiled, and why.
"""
