"""Templates, and clones of a template or of a running VM."""
