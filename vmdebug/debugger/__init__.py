"""The debugger: GDB/MI records and transport, the run state, breakpoints, values.

`gdb.Gdb` is what the layers above use; it knows nothing of QEMU but its gdbstub.
"""
