"""Start a Linux guest in QEMU under GDB; the public API is re-exported here."""
