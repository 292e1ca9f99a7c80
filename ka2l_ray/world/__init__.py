"""The bundled world: facts, a student that knows half of them, a small NLI judge. The default, and a measuring instrument."""

from __future__ import annotations

from importlib import resources

from ka2l_ray.config import BUNDLED_JUDGE, BUNDLED_STUDENT
from ka2l_ray.errors import UserError

_PREFIX = "bundled:"
BUNDLED = (BUNDLED_STUDENT, BUNDLED_JUDGE)


def bundled_path(path: str) -> str:
    """``bundled:student`` and ``bundled:judge`` as directories; any other path as it is.

    Raises:
        UserError: another bundled name.
    """
    if not path.startswith(_PREFIX):
        return path
    if path not in BUNDLED:
        raise UserError(f"{path}: no model there; bundled are {' and '.join(BUNDLED)}")
    return str(resources.files("ka2l_ray.world") / path.removeprefix(_PREFIX))
