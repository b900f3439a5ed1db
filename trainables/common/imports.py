"""A user's own functions by import path, and the fingerprint of their source."""

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def load(path: str) -> Callable[..., Any]:
    """The function or class at "package.module:name"; modules beside the current working directory are found too.

    Raises ValueError when the path has no colon, the module or the name is not there, or it cannot be called. An error
    that the module itself raises while it is imported is passed on.

    >>> load("math:sqrt")(4.0)
    2.0
    """
    module, name = _module_and_name(path)
    if not hasattr(module, name):
        there = ", ".join(sorted(word for word, value in vars(module).items() if callable(value) and word[0] != "_"))
        raise ValueError(f"module {module.__name__} has no {name!r} (from {path!r}); it has {there or 'no functions'}")
    found = getattr(module, name)
    if not callable(found):
        raise ValueError(f"{path!r} must be a function or a class, got {type(found).__name__} {found!r}")
    return found


def fingerprint(source: str | Callable[..., Any]) -> str:
    """sha256 (hex) of the source of the module that defines a function or class, given as such or by import path.

    Of a path, the module named in it counts, and the defining one where that is another. What these modules import
    does not count. Raises ValueError when there is no source to read (built-ins, compiled or interactive code).
    """
    if isinstance(source, str):
        modules = [_module_and_name(source)[0], _home(load(source))]
    else:
        modules = [_home(source)]
        if modules[0] is None:
            raise ValueError(f"{source!r} has no module whose source could be read; give an import path 'module:name'")
    texts = {module.__name__: _source(module) for module in modules if module is not None}
    return hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()


def _module_and_name(path: str) -> tuple[ModuleType, str]:
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name.isidentifier():
        raise ValueError(f"an import path reads 'package.module:name', got {path!r}")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name), name
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"no module {error.name!r} (from {path!r}); put it beside the working directory {here} or on PYTHONPATH"
        ) from None


def _home(found: Callable[..., Any]) -> ModuleType | None:
    """Where a function or class is defined; None for other callables, such as a partial."""
    named = inspect.isroutine(found) or inspect.isclass(found)
    return sys.modules.get(found.__module__ or "") if named else None


def _source(module: ModuleType) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        raise ValueError(
            f"module {module.__name__} has no source that could be read, so a change in it would go unnoticed; "
            f"wrap what you need of it in a function of a .py file of your own"
        ) from None
