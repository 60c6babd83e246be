"""A griffe extension for the API pages: docstrings are plain text, so `<name>` and `[A] [B]` in
them are neither HTML tags nor links."""

import re
from typing import Any

import griffe


def escape(text: str) -> str:
    """Escape what Markdown would take for a tag or a link, except in code spans."""
    parts = re.split(r"(`[^`]*`)", text)
    for number in range(0, len(parts), 2):  # the others are code
        plain = re.sub(r"<(?=/?[A-Za-z_]+>)", "&lt;", parts[number])
        parts[number] = plain.replace("] [", "] \\[")
    return "".join(parts)


class PlainDocstrings(griffe.Extension):
    """Escapes every docstring of the package."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Escape the docstring of an object, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = escape(obj.docstring.value)
