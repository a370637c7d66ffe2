"""What the contract asks of every network."""

NEEDS = frozenset({"fmap", "query"})
STAGES = frozenset({"stage1", "stage2", "stage3"})
