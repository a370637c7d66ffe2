"""Augmentation: operations, transforms, named stacks."""
