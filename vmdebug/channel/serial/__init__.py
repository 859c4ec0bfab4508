"""The guest's serial line: who may have it, its shell, what it shows of the kernel's trouble."""
