"""Copies files and directories into the guest and out of it, through any channel into the guest.

`put` and `get` run a script in the guest (`put.sh`, `get.sh`). It needs a POSIX shell, `stat`, `mktemp`, and
for directories `tar`; busybox has them all. A copy gets its name only when it is complete.
"""
