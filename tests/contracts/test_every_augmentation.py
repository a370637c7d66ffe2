"""Every augmentation keeps what those of plugins have to keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ltcore.contracts.augmentations import CONTRACTS
from ltcore.data.augment.policies import AUGMENTS


@pytest.mark.parametrize("check", CONTRACTS)
@pytest.mark.parametrize("name", AUGMENTS)
def test_contract(name: str, check: Callable[[str], None]) -> None:
    check(name)
