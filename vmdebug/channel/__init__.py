"""Ways into a running guest: its serial line, and the shell behind it."""
