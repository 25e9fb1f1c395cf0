"""The one exception for what a user has to mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user's making: one line that says what is wrong and what to do (exit 2)."""
