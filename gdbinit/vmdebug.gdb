# Commands for debugging a Linux kernel that runs in QEMU. In any GDB:
#
#     source PATH/TO/vmdebug.gdb
#     help vmd
#
# This needs GDB 13.1 or newer with Python, and nothing else. GDB does not tell a script its own path, but keeps
# the file open while it reads it.
python
import os, sys

def _vmd_directory():
    for fd in sorted(os.listdir("/proc/self/fd"), key=int, reverse=True):
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if os.path.basename(path) == "vmdebug.gdb" and os.path.exists(os.path.dirname(path) + "/vmd_load.py"):
            return os.path.dirname(path)
    raise gdb.GdbError("vmdebug.gdb cannot find its own directory: source it by its file name")

if _vmd_directory() not in sys.path:
    sys.path.insert(0, _vmd_directory())
import gc
gc.disable()  # everything that is created here stays
try:
    import vmd_load
    vmd_load.load()
finally:
    gc.enable()
del _vmd_directory
end
