"""The sources' experiments, each one file on the library's own parts. `CATALOGUE` lists them; `run` runs one.

Nothing heavy is imported before a recipe runs.
"""

from veneer.recipes.catalogue import CATALOGUE, Entry, run
from veneer.recipes.options import Options, Say

__all__ = ["CATALOGUE", "Entry", "Options", "Say", "run"]
