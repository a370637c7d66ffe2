"""Every speed beside that of a peer, in the same run."""
