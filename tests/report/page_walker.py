"""What every page of a report must fulfil."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "img", "br"}


class Walker(HTMLParser):
    """Follows every tag, and remembers ids, references, tag names and visible text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        for key, value in attributes:
            self.attributes.append((key, value or ""))
            if key == "id":
                self.ids.append(value or "")
            if key in {"href", "src", "xlink:href"}:
                self.references.append(value or "")
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open, f"</{name}> closes nothing"
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def walk(page: str) -> Walker:
    """Check what every page must fulfil, and return what was seen on the way."""
    walker = Walker()
    walker.feed(page)
    walker.close()
    assert walker.open == []
    assert len(walker.ids) == len(set(walker.ids)), "ids are unique"
    for reference in walker.references:
        assert reference.startswith(("#", "data:image/"))
        if reference.startswith("#"):
            assert reference[1:] in walker.ids
    assert "script" not in walker.tags
    assert not [key for key, _ in walker.attributes if key.startswith("on")]
    assert not re.search(r"https?://", page)
    policy = [
        value for key, value in walker.attributes if key == "content" and "default-src" in value
    ]
    assert policy and policy[0].startswith("default-src 'none'")
    return walker


def words(walker: Walker) -> str:
    return " ".join(" ".join(walker.text).split())
