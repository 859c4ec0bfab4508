"""vmdebug's agent in the guest: its binary, its protocol, and the commands that it runs."""
