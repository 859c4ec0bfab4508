"""Kernel configurations: reading, making and checking them."""
