"""Our agent in the guest: the program, its protocol, and commands run by it."""
