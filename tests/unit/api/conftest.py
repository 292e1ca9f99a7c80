"""Questions of the bundled world and a scorer of the bundled student, on which the tests of the face run."""

from __future__ import annotations

import pandas as pd
import pytest

from ka2l_ray import Uncertainty
from ka2l_ray.world.facts import World


@pytest.fixture(scope="session")
def pool(world: World) -> pd.DataFrame:
    """Forty questions with ids and accepted answers."""
    return pd.DataFrame(world.rows("pool")[:40])


@pytest.fixture(scope="session")
def scorer() -> Uncertainty:
    return Uncertainty("bundled:student", judge="bundled:judge", k=4, max_tokens=12, device="cpu")
