"""Kernels as files: a build tree, an image, a Nix `dev` output, and their symbols, scripts and modules."""
