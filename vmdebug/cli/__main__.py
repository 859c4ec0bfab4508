"""`python -m vmdebug.cli`, for checkouts without an installed `vmdebug`."""

from vmdebug.cli import main

main()
