"""What goes wrong on a machine."""

from __future__ import annotations


class LocalStackError(Exception):
    """Something is missing, or did not start; the message names the cause and the remedy."""
