"""Check the pages of a built site: links lead somewhere, equations are typeset, nothing is fetched.

Run by `make docs` after `build.py`; prints each fault and exits with 1 if there is one.
"""

import argparse
import html.parser
import pathlib
import re
import sys
import urllib.parse

#: What the whole site may weigh, bytes.
LARGEST = 12_000_000


class Page(html.parser.HTMLParser):
    """Links, anchors and prose of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.prose: list[str] = []
        self._code = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note where a tag leads to and what it is called."""
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        loads = tag in ("script", "img", "iframe") or (
            tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload")
        )
        if loads:
            self.loaded += [found[name] for name in ("src", "href") if name in found]
        self._code += tag in ("pre", "code", "script", "style")

    def handle_endtag(self, tag):
        """Leave code."""
        self._code -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data):
        """Keep what is read as text."""
        if not self._code:
            self.prose.append(data)


def faults(site: pathlib.Path) -> list[str]:
    """Each fault of the pages below `site`, as a line."""
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site} holds no page"]
    for path, page in pages.items():
        name = path.relative_to(site)
        for link in [*page.links, *page.loaded]:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    found.append(f"{name}: fetches {link}")
                continue
            target = path if not parts.path else (path.parent / urllib.parse.unquote(parts.path))
            target = target.resolve()
            if not target.exists():
                found.append(f"{name}: {link} leads nowhere")
            elif parts.fragment and target in pages and target.suffix == ".html":
                if urllib.parse.unquote(parts.fragment) not in pages[target].anchors:
                    found.append(f"{name}: {link} has no such anchor")
        for raw in re.findall(r"\$[^$ ][^$]*\$|\\(?:frac|sum|eta|mathrm)\b", "".join(page.prose)):
            found.append(f"{name}: not typeset: {raw[:60]}")
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    return found + ([f"{size:,} bytes in all, {LARGEST:,} allowed"] if size > LARGEST else [])


def main() -> int:
    """Print the faults of a site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", nargs="?", default="site", help="folder of the pages")
    lines = faults(pathlib.Path(parser.parse_args().site).resolve())
    print(*lines or ["site: links, equations and size are right"], sep="\n")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
