"""Checks the built site: each link and anchor leads somewhere, and nothing is loaded from another host.

python docs/_ext/links.py docs/_build/html
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the links and the anchor of an element."""
        found = dict(attrs)
        if found.get("id"):
            self.anchors.add(found["id"] or "")
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        elif tag in ("script", "img", "source") and found.get("src"):
            self.loaded.append(found["src"] or "")
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload") and found.get("href"):
            self.loaded.append(found["href"] or "")


def wrong(site: Path) -> Iterator[str]:
    """Yield a line for each link that leads nowhere."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    yield f"{path}: loads {link} from another host"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{path}: {link}: there is no such file"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{path}: {link}: there is no such anchor"


def main() -> None:
    """Check the site; exit with status 1 if a link is wrong."""
    site = Path(sys.argv[1]).resolve()
    found = list(wrong(site))
    for line in found:
        print(line, file=sys.stderr)
    count = sum(1 for _ in site.rglob("*.html"))
    if found or not count:
        sys.exit(f"docs: {len(found)} links are wrong, in {count} pages")
    print(f"docs: all links of {count} pages lead somewhere: {site / 'index.html'}")


if __name__ == "__main__":
    main()
