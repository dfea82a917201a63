"""What the load generator says when it cannot do what a plan asks."""

from __future__ import annotations


class PlanError(Exception):
    """A plan, a flag or a results file is wrong; the message names the cause and the remedy."""


class GeneratorError(Exception):
    """The generator itself failed, one of its senders say; what it had measured is no result."""
