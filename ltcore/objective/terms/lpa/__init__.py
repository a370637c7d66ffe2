"""LPA: local pseudo-attributes."""
