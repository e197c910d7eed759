"""Reading of HTML in tests."""

from __future__ import annotations

from html.parser import HTMLParser


class Element:
    """Hold an element: its attributes, its children, and the text of all of them."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        """Return the text of the element with single spaces, text of different elements apart."""
        parts = (child if isinstance(child, str) else child.text for child in self.children)
        return " ".join(" ".join(parts).split())

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        """Return the elements inside that have this tag, and among their classes or values these attributes.

        ``kind`` stands for the attribute "class".
        """
        wanted = {{"kind": "class"}.get(name, name): value for name, value in attributes.items()}
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if child.tag == (tag or child.tag) and all(
                    value in (child.attributes.get(name) or "").split() for name, value in wanted.items()
                ):
                    found.append(child)
                found += child.all(tag, **attributes)
        return found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in ("meta", "input", "img"):
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Element:
    """Return the page as a tree; fails where a tag is not closed, or not in order."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert parser.open == [parser.root], f"not closed: {[element.tag for element in parser.open]}"
    return parser.root
