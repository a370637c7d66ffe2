"""Methods that balance the classifier on frozen features."""
