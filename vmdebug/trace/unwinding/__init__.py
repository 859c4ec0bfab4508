"""Unwinds copies of kernel stacks outside the guest.

`stack` is a copied stack, `frame_pointers` and `orc` find the callers in it, `places` names addresses, and
`backtrace` chooses and combines them for a kernel.
"""
