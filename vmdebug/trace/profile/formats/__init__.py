"""The files that profiles are written to: one module for each format."""
