"""Kernels as files: a build tree, an image, a Nix `dev` output, and what belongs to each."""
