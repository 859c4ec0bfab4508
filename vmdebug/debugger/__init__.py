"""The debugger: GDB over GDB/MI, and all that a session does with it.

`gdb.Gdb` is what the layers above use. It knows nothing of QEMU except its gdbstub. `interactive` is the GDB
at which a person types.
"""
