"""Terms that are added to a base loss."""
