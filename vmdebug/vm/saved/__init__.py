"""A VM's state, saved, and what goes on from it: snapshots, templates, clones."""
