"""Maps and sliders over trained concepts: drag a point, and see who lives there."""
from importlib import import_module

_PUBLIC = dict(AVERAGE="renderer", Position="renderer", Studio="renderer", Explorer="page", site="serve")
__all__ = list(_PUBLIC)


def __getattr__(name):
    "Public names load their module, and torch with it, when they are first asked for."
    if name not in _PUBLIC: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
