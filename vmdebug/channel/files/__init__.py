"""Files and directories into the guest and out of it, through whichever way into the guest answers.

`put` and `get` run a script in the guest (`put.sh`, `get.sh`), which needs a POSIX shell, `stat`, `mktemp`,
and for directories `tar`; busybox has them all. Each copy is complete before it gets its name.
"""
