"""The bundled world: facts, a student that knows half of them, a small NLI judge. The default, and a measuring instrument."""

from __future__ import annotations

from importlib import resources

_PREFIX = "bundled:"


def bundled_path(path: str) -> str:
    """``bundled:student`` and ``bundled:judge`` as directories; any other path as it is."""
    if not path.startswith(_PREFIX):
        return path
    return str(resources.files("ka2l_ray.world") / path.removeprefix(_PREFIX))
