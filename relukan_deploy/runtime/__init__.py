"""Running a bundle: `load` gives a `Runner`."""

from .guard import Stats
from .load import BACKENDS, load
from .runner import Runner

__all__ = ["BACKENDS", "Runner", "Stats", "load"]
