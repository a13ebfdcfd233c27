"""Triton's interpreter without its needless work, for the tests of kernels on a CPU: what it computes is the same.

It maps `triton.language` to NumPy once more for every call of a device function, though the launch around it has done
so, and makes its table of types anew for every operation: a third of its time.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest


def install(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone, a launch maps each module of the language once; types are looked up once."""
    from triton import language
    from triton.runtime import interpreter

    map_language, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    mapped: set[str] = set()

    @functools.cache
    def modules(function: Callable[..., Any]) -> frozenset[str]:
        names = {id(language): "language", id(language.core): "core"}
        return frozenset(names[id(each)] for each in function.__globals__.values() if id(each) in names)

    def map_once(function: Callable[..., Any]) -> Any:
        if modules(function) <= mapped:
            return interpreter._LangPatchScope()  # nothing to restore
        scope = map_language(function)
        mapped.update(modules(function))
        return scope

    numpy_type = interpreter._get_np_dtype
    scalar_type = functools.cache(numpy_type)

    def numpy_type_once(kind: Any) -> Any:
        element = kind.element_ty if isinstance(kind, language.block_type) else kind
        return numpy_type(kind) if isinstance(element, language.pointer_type) else scalar_type(element)

    def launch_afresh(executor: Any, *args: Any, **given: Any) -> None:
        mapped.clear()
        launch(executor, *args, **given)

    patch.setattr(interpreter, "_patch_lang", map_once)
    patch.setattr(interpreter.GridExecutor, "__call__", launch_afresh)
    patch.setattr(interpreter, "_get_np_dtype", numpy_type_once)
