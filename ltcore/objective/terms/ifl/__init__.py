"""IFL: invariant feature learning over environments."""
