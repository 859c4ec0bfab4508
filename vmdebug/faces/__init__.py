"""Other programs' ways to use a session; each is behind an extra."""
