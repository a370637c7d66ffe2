"""Command lines and commands of the console script ``ltcore`` and of ``pipelines/``."""
