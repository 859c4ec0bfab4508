"""A machine in kgdb, whose gdbstub is in its own kernel: how to reach it, and the wait until it answers.

See Documentation/dev-tools/kgdb.rst of the kernel.
"""
