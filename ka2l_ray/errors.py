"""Errors by audience: ``UserError`` is what a user can put right, and becomes one line and exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong use or wrong input. The message says what, where and what to do, in one line."""


class RunMismatchError(UserError):
    """A run directory holds another run than the one asked for."""


class RunLockedError(UserError):
    """Another driver works on the run directory."""
