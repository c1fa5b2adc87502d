"""Files as text: written as a whole or not at all, and JSON without what JSON does not have."""

import json
import math
import os
from pathlib import Path
from typing import Any

from pyrovae.errors import Error


def write(path: Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(draft, path)
    except OSError as failure:
        raise Error(f"'{path}' cannot be written: {failure.strerror}") from None


def json_text(tree: Any) -> str:
    """JSON, with `null` for what is not finite."""
    return json.dumps(_finite(tree), indent=2, ensure_ascii=False) + "\n"


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
