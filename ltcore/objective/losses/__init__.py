"""Base losses, one file each."""
