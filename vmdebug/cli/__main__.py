"""`python -m vmdebug.cli`, where no `vmdebug` is installed."""

from vmdebug.cli import main

main()
