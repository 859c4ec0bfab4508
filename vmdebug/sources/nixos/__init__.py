"""NixOS systems: built from a flake, started by their VM runner, deployed to a machine."""
