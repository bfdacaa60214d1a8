"""What runs before a program of ``realalloc run`` or ``realalloc record``: found by ``site``, it does its part and is gone.

Both put this directory first in PYTHONPATH, so that everything else (``sys.argv``, ``sys.path``, ``__main__``, tracebacks, the
exit code) is as Python itself makes it, and leave what they want in a variable of their own. The part of each is a file beside
this one. Any other ``sitecustomize`` runs afterwards.

May not: import this package, numba or NumPy; raise; say anything on stdout.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

PARTS = {"REALALLOC_RECORD": "record", "REALALLOC_RUN": "arena"}  # the recorder was started last: it goes first
HERE = os.path.dirname(os.path.abspath(__file__))


class NumpyFinder:
    """First in ``sys.meta_path`` until NumPy is there."""

    def __init__(self, met: Callable[[ModuleType], None]) -> None:
        """Remember who wants to be told."""
        self.met = met
        self.finding = False

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> Any:
        """Find NumPy as the others do, and tell of it when it is there."""
        if name != "numpy" or self.finding:
            return None
        self.finding = True
        try:
            spec = importlib.util.find_spec("numpy")
        finally:
            self.finding = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.met(module)

            vars(spec.loader)["exec_module"] = exec_module
        return spec


def meet_numpy(met: Callable[[ModuleType], None]) -> None:
    """Call ``met`` with NumPy: now, or when the program has imported it."""
    if "numpy" in sys.modules:
        met(sys.modules["numpy"])
    else:
        sys.meta_path.insert(0, NumpyFinder(met))


def take(variable: str) -> dict[str, Any]:
    """Return what was left in the environment, and take it and our PYTHONPATH away, but for what children shall find, too."""
    config: dict[str, Any] = json.loads(os.environ[variable])
    if not config.get("children", False):
        del os.environ[variable]
        if config["pythonpath"] is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = config["pythonpath"]
    return config


def main() -> None:
    """Do the part of each variable that is there."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != HERE]
    sys.path_importer_cache.pop(HERE, None)
    for variable, name in PARTS.items():
        if variable in os.environ:
            spec: Any = importlib.util.spec_from_file_location(f"_realalloc_{name}", os.path.join(HERE, f"{name}.py"))
            part = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(part)
            part.begin(take(variable), meet_numpy)


if any(variable in os.environ for variable in PARTS):
    main()
    _me = sys.modules.pop(__name__)
    try:
        importlib.import_module("sitecustomize")  # whatever else there is
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
        sys.modules[__name__] = _me  # importlib wants to find it
