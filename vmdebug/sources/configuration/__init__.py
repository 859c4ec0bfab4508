"""What a kernel is configured with, and has to be."""
