"""Reads the console's log: kernel messages, the guest's death, kernel trouble."""
