"""The guest's serial line: one client at a time, the shell on it, and the protocol of its commands."""
