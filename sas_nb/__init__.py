"""Set-and-Sequence: learn how a person looks and moves from one short video, and edit the two apart.

The names below load their modules, and torch with them, when they are first asked for.
"""
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_HOMES = {
    "Clip": "clip",
    "VideoDiT": "dit",
    "Prompts": "prompt",
    "Memory": "memory",
    "Recipe": "recipe",
    "Run": "recipe",
    "learn": "learning",  # a module named `learn` would take the function's place once it is imported
    "learn_many": "learning",
    "compose": "composing",
    "learn_together": "composing",
    "Concept": "concept",
    "Atlas": "atlas",
}
__all__ = ["Atlas", "Clip", "Concept", "Memory", "Prompts", "Recipe", "Run", "VideoDiT",
           "compose", "learn", "learn_many", "learn_together"]

if TYPE_CHECKING:
    from .atlas import Atlas
    from .clip import Clip
    from .composing import compose, learn_together
    from .concept import Concept
    from .dit import VideoDiT
    from .learning import learn, learn_many
    from .memory import Memory
    from .prompt import Prompts
    from .recipe import Recipe, Run


def __getattr__(name: str):
    "Load a public name from its module, and keep it."
    if name not in _HOMES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__(): return sorted({*globals(), *_HOMES})
