"""The exception for mistakes that the user can correct."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user. The text is one line that says what is wrong and what to do (exit status 2)."""
