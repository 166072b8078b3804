"""Errors a user can act on: each names the value, the choices and the fix."""

import difflib
from collections.abc import Iterable


class VolarError(Exception):
    """A failure with a one-line reason; a verb prints it and exits with 1."""


class UsageError(VolarError):
    """The command line itself is wrong; a verb prints it and exits with 2."""


class Unknown(UsageError):
    """A name that is not among the choices: `Unknown("task", "lfit", ["lift", "reach"])`."""

    def __init__(self, kind: str, value: str, choices: Iterable[str]) -> None:
        self.kind, self.value, self.choices = kind, value, sorted(choices)
        near = difflib.get_close_matches(value, self.choices, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"unknown {kind} {value!r}{hint} (choices: {', '.join(self.choices) or 'none'})")
