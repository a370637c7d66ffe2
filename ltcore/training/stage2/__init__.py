"""Stage 2: balanced classifiers on the frozen features of a run."""
