"""HTML that cannot be broken by what it shows: text is escaped where an element is made."""

from __future__ import annotations

import base64
import html
import io
import re
import warnings
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VOID = {"meta", "img", "br"}
_CSS_COLOR = re.compile(r"#[0-9a-f]{6}")
_FONT_FAMILY = re.compile(r"'DejaVu Sans'[^;]*")
_LONG_NUMBER = re.compile(r"(\.\d\d)\d+")
_REFERENCE = re.compile(r"(?:url\()?#([\w.-]+)\)?")


class Markup(str):
    """Text that is HTML already; every other string is escaped when it becomes part of an element."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: str | float | None) -> Markup:
    """Make one element.

    Args:
        name: the element's name.
        children: text (escaped) or :class:`Markup`; None is left out.
        attributes: ``class_`` and ``aria_label`` are written ``class`` and ``aria-label``; None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*parts: str | None) -> Markup:
    """Put parts side by side, escaping those that are no :class:`Markup`."""
    return Markup(
        "".join(
            part if isinstance(part, Markup) else html.escape(part)
            for part in parts
            if part is not None
        )
    )


def data_uri(picture: npt.NDArray[np.uint8], kind: Literal["png", "jpeg"] = "png") -> str:
    """Encode ``(height, width, 4)`` 8-bit RGBA as a data URI."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    options = {"quality": 88} if kind == "jpeg" else {"optimize": True}
    imsave(buffer, np.ascontiguousarray(picture), format=kind, pil_kwargs=options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def inline_svg(figure: Figure, prefix: str, description: str, variables: dict[str, str]) -> Markup:
    """Turn a figure into an ``<svg>`` element that lives in the page and follows its theme.

    Args:
        figure: a matplotlib figure.
        prefix: makes the element's ids unique within the page.
        description: what the figure shows, for those who cannot see it.
        variables: colours (``#rrggbb``) to write as CSS variables, so that they change with the theme.
    """
    root = ET.fromstring(_svg(figure))
    used = {
        match.group(1)
        for element in root.iter()
        for value in element.attrib.values()
        if (match := _REFERENCE.fullmatch(value))
    }
    body = join(*(_inline(child, prefix, used, variables) for child in root))
    return Markup(
        f'<svg viewBox="{html.escape(root.attrib["viewBox"])}" role="img" '
        f'aria-label="{html.escape(description)}">{body}</svg>'
    )


def _svg(figure: Figure) -> bytes:
    import matplotlib as mpl

    buffer = io.BytesIO()
    with (
        warnings.catch_warnings(),
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vitreous"}),
    ):
        # Text is drawn by the browser's fonts; that matplotlib's own lacks a glyph does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    return buffer.getvalue()


def _inline(
    element: ET.Element, prefix: str, used: set[str], variables: dict[str, str]
) -> Markup | None:
    name = _local(element.tag)
    if name in {"metadata", "style"}:
        return None
    attributes: dict[str, str] = {}
    for qualified, value in element.attrib.items():
        key = _local(qualified)
        if key == "id":
            if value in used:
                attributes[key] = prefix + value
        elif _REFERENCE.fullmatch(value):
            attributes[key] = value.replace("#", f"#{prefix}", 1)
        elif key == "style":
            attributes[key] = _themed(value, variables)
        elif key == "d":
            attributes[key] = _LONG_NUMBER.sub(r"\1", " ".join(value.split()))
        elif key != "space":
            attributes[key] = value
    children = [_inline(child, prefix, used, variables) for child in element]
    text = (element.text or "").strip()
    if not text and name in {"g", "defs"} and not any(children):
        return None
    written = "".join(f' {key}="{html.escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{written}>{join(text, *children)}</{name}>")


def _themed(style: str, variables: dict[str, str]) -> str:
    style = _CSS_COLOR.sub(lambda match: variables.get(match.group(), match.group()), style)
    return _FONT_FAMILY.sub("var(--sans)", style)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
