"""HTML by functions that escape every text, so that nothing a run says becomes markup."""

import base64
import html
from collections.abc import Iterable, Sequence

BLANK = "\u2013"  # of a table's empty cell
VOID = ("img", "input", "meta", "line", "rect", "path", "circle", "polyline", "polygon")


class Html(str):
    """Text that is markup already."""


def tag(name: str, /, *content: str | None, **attributes: object) -> Html:
    """Return an element; all text in it is escaped, unless it is markup.

    Args:
        name: Its name, such as "p".
        content: Text or markup; None is left out.
        attributes: Its attributes; "class_" stands for "class" and "aria_label" for "aria-label".
            True is an attribute without a value; None and False leave it out.
    """
    shown = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        shown += f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
    if name in VOID:
        return Html(f"<{name}{shown}/>")
    return Html(f"<{name}{shown}>{join(content)}</{name}>")


def join(content: Iterable[str | None]) -> Html:
    """Return texts and markup, one after the other; texts are escaped."""
    parts = (part for part in content if part is not None)
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def prose(text: str) -> Html:
    """Return a text in which `names` between backticks are set as code."""
    if isinstance(text, Html):
        return text
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return join([text])
    return join(tag("code", piece) if i % 2 else piece for i, piece in enumerate(pieces))


def paragraph(*content: str, class_: str | None = None) -> Html:
    """Return a paragraph; `names` between backticks are code."""
    return tag("p", *map(prose, content), class_=class_)


def bullets(items: Sequence[str]) -> Html | None:
    """Return a list; None if it is empty."""
    return tag("ul", *(tag("li", prose(item)) for item in items)) if items else None


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True
) -> Html:
    """Return a table that scrolls sideways by itself where the screen is narrow.

    Args:
        caption: What it shows.
        columns: Heads of the columns.
        rows: Cells; the first one of a row is its head.
        numbers: Whether the other cells are figures, which are set to the right.
    """
    head = tag("tr", *(tag("th", text, scope="col") for text in columns))
    lines = []
    for first, *cells in rows:
        lines.append(tag("tr", tag("th", first, scope="row"), *(tag("td", c) for c in cells)))
    body = tag(
        "table",
        tag("caption", caption),
        tag("thead", head),
        tag("tbody", *lines),
        class_="numbers" if numbers else None,
    )
    return tag("div", body, class_="scroll", tabindex=0, role="region", aria_label=caption)


def details(summary: str, *content: str | None, is_open: bool = False) -> Html:
    """Return a part that opens at a click, and is open in print."""
    return tag("details", tag("summary", summary), *content, open=is_open)


def data_uri(data: bytes, kind: str) -> str:
    """Return a file as a data URI, e.g. of kind "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
