"""The kernel's own GDB scripts, found or made."""
