"""Code that a spec names: a function or a class under its import path, `module:name`.

A spec is text, and opening a saved one executes nothing: an import path is looked up among the
modules that are imported already, and a user's own are imported where a spec or a command says so.
"""

import sys
from typing import Any

from pyrovae.errors import Error


class Named:
    """A function or a class, with the import path that a spec knows it by.

    Args:
        value: the function or the class.
        path: where it was found; its own module and name unless given.
    """

    def __init__(self, value: Any, path: str | None = None) -> None:
        self.value, self.path = value, path

    def __repr__(self) -> str:
        return self.path or f"{self.value.__module__}:{self.value.__qualname__}"

    def address(self) -> str:
        """The import path.

        Raises:
            Error: nothing is found there, or only while the present script runs.
        """
        address = repr(self)
        module, _, name = address.partition(":")
        if module == "__main__":
            raise Error(
                f"'{address}' is known to this script only: move it to a module to save it"
            )
        if getattr(sys.modules.get(module), name, None) is not self.value:
            what = "class" if isinstance(self.value, type) else "function"
            raise Error(
                f"'{address}' is not a {what} at the top of a module: a spec cannot name it; "
                f"define one there that {'extends' if what == 'class' else 'calls'} it"
            )
        return address


def find(path: str) -> Any:
    """What has the import path `module:name`, in a module that has been imported.

    Raises:
        Error: the module has not been imported, or has nothing of that name.
    """
    module, _, name = path.partition(":")
    if module not in sys.modules:
        raise Error(f"the module of '{path}' has not been imported: name it in 'import'")
    found = getattr(sys.modules[module], name, None)
    if found is None:
        raise Error(f"the module '{module}' has no '{name}'")
    return found
