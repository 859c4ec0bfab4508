"""drgn on a VM: a `drgn.Program` that reads guest memory through QEMU, with proven symbols.

drgn is imported when the first program is made; the extra drgn installs it.
"""
