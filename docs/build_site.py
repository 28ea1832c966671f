"""Builds the site in build/site: the Markdown of the repository, searchable. `make docs` runs it.

Every page keeps the place that it has in the repository, so a link that leads somewhere in a plain viewer does on the
site. What a page links to becomes part of it: Markdown as it is, a program or a settings file as a page that shows it,
a picture as itself. The order of the sidebar is that of the tables in docs/README.md; a page that stands in none of
them is an error, and so is a link or an anchor that leads nowhere, or anything that would be fetched from elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "build"
INDEX = "docs/README.md"
START = ("README.md", INDEX, "docs/site.css", "docs/iframe-worker.js", "docs/pictures/logo.svg")
SHOWN_AS_THEY_ARE = {".css", ".js", ".svg", ".png", ".ipynb", ".json"}
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".service": "ini", ".ini": "ini", ".sh": "sh"}
FENCED = re.compile(r"(^ *```+[^`\n]*\n.*?^ *```+ *$)", re.MULTILINE | re.DOTALL)
OPENING = re.compile(r"^( *```+[\w.-]*).*$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(CODE.pattern + r"|(\]\(|\b(?:src|href)=\")([^)\s\"]+)")
# Where Python-Markdown differs from GitHub: a list needs an empty line above it, and code in a table no backslash.
TIGHT_LIST = re.compile(r"^((?![-*|\s]|\d+\. ).+)\n(?=- |1\. )", re.MULTILINE)
TABLE_ROW = re.compile(r"^\|.*$", re.MULTILINE)
ROW = re.compile(r"^\| \[(.+?)\]\((\S+?)\)", re.MULTILINE)


class BadSite(Exception):
    """The pages do not hold together; says how."""


def main() -> None:
    arguments = argparse.ArgumentParser(description="build the site")
    arguments.add_argument("--root", type=Path, default=ROOT, help="the repository")
    arguments.add_argument("--target", type=Path, default=TARGET, help="where pages/ and site/ are made")
    chosen = arguments.parse_args()
    try:
        pages = build(chosen.root.resolve(), chosen.target.resolve())
    except BadSite as error:
        sys.exit(f"docs: {error}")
    site = os.path.relpath(chosen.target / "site")
    print(f"{site}/index.html: {pages} pages; opens from the disk, or: python -m http.server -d {site}")


def build(root: Path, target: Path) -> int:
    """The number of pages of the site that stands in `target/site` afterwards."""
    for folder in ("pages", "site", ".cache"):
        shutil.rmtree(target / folder, ignore_errors=True)
    sections = order(root)
    pages = Pages(root, target / "pages")
    for path in (*START, *(path for _, rows in sections for _, path in rows)):
        pages.take(path)
    settings = (root / "docs" / "site.toml").read_text()
    (target / "site.toml").write_text(settings.replace("[project]\n", f"[project]\n{navigation(root, sections)}\n", 1))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(target / "site.toml")]
    done = subprocess.run(command, cwd=target, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
        raise BadSite(f"zensical refuses the pages, which are in {target / 'pages'}:\n{said.partition('Traceback')[0]}")
    check(target / "site")
    return len(list((target / "site").rglob("*.html")))


def order(root: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """The sections of docs/README.md, each with the titles and paths of its table."""
    found = []
    for part in (root / INDEX).read_text().split("\n## ")[1:]:
        rows = [(title, os.path.normpath(Path(INDEX).parent / path)) for title, path in ROW.findall(part)]
        if rows:
            found.append((part.partition("\n")[0], rows))
    named = {path for _, rows in found for _, path in rows} | {INDEX}
    lost = sorted({f"docs/{path.name}" for path in (root / "docs").glob("*.md")} - named)
    if lost:
        raise BadSite(f"in no table of {INDEX}, so nobody finds it: {', '.join(lost)}")
    return found


def navigation(root: Path, sections: list[tuple[str, list[tuple[str, str]]]]) -> str:
    """The sidebar as TOML, whose strings are those of JSON."""
    lines = [entry("pytailscale", "README.md"), entry("All pages", INDEX)]
    for title, rows in sections:
        lines.append(heading(title, [branch(root, name, path) for name, path in rows]))
    return f"nav = [{', '.join(lines)}]"


def branch(root: Path, title: str, path: str) -> str:
    """A page, and below it those of the folder of its name, in the order in which it links to them."""
    folder = root / path.removesuffix(".md")
    linked = dict.fromkeys(re.findall(rf"\]\({folder.name}/([\w-]+\.md)\)", (root / path).read_text()))
    if not linked:
        return entry(title, path)
    names = {name: (folder / name).read_text().partition("\n")[0].rpartition(": ")[2] for name in linked}
    below = [entry(names[name], f"{path.removesuffix('.md')}/{name}") for name in linked]
    return heading(title, [entry("Index", path), *below])


def entry(title: str, path: str) -> str:
    return f"{{ {json.dumps(title)} = {json.dumps(path)} }}"


def heading(title: str, entries: list[str]) -> str:
    return f"{{ {json.dumps(title)} = [{', '.join(entries)}] }}"


class Pages:
    """The folder that the site is built from. Takes a file, and then what that links to."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._taken: dict[str, str] = {}

    def take(self, path: str) -> str:
        """Make it part of the site. Returns where it is there."""
        if path not in self._taken:
            source = self._root / path
            if source.is_dir():
                return self.take(f"{path}/README.md") if (source / "README.md").exists() else self._show_folder(path)
            if not source.is_file():
                raise BadSite(f"there is no {path}")
            is_page = source.suffix == ".md" or source.suffix in SHOWN_AS_THEY_ARE
            self._taken[path] = path if is_page else f"{path}.md"
            if source.suffix == ".md":
                self._write(path, self._page(path, source.read_text()))
            elif source.suffix in SHOWN_AS_THEY_ARE:
                self._write(path, source.read_bytes())
            else:
                self._write(f"{path}.md", shown(source))
        return self._taken[path]

    def _page(self, path: str, text: str) -> str:
        """The same page in the words of Python-Markdown."""
        parts = FENCED.split(text)  # prose, code, prose, ...
        parts[::2] = [self._prose(path, prose) for prose in parts[::2]]
        parts[1::2] = [OPENING.sub(r"\1", code, count=1) for code in parts[1::2]]  # words for the tests go
        return "".join(parts)

    def _prose(self, path: str, prose: str) -> str:
        prose = LINK.sub(lambda found: found[1] + self._link(path, found[2]) if found[1] else found[0], prose)
        prose = TIGHT_LIST.sub(r"\1\n\n", prose)
        return TABLE_ROW.sub(lambda row: CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), prose)

    def _link(self, path: str, link: str) -> str:
        parts = urlsplit(link)
        if parts.scheme or not parts.path:
            return link
        wanted = os.path.normpath(Path(path).parent / unquote(parts.path))
        if wanted.startswith("..") or not (self._root / wanted).exists():
            raise BadSite(f"{path} links to {link}, and there is no {wanted}")
        there = os.path.relpath(self.take(wanted), Path(path).parent)
        return there + (f"#{parts.fragment}" if parts.fragment else "")

    def _show_folder(self, path: str) -> str:
        page = f"{path}/README.md"
        self._taken[path] = page
        rows = [f"- [{name}]({name})" for name in sorted(file.name for file in (self._root / path).iterdir())]
        self._write(page, self._page(page, "\n".join([f"# {path}", "", *rows, ""])))
        return page

    def _write(self, path: str, content: str | bytes) -> None:
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)


def shown(source: Path) -> str:
    """A page with a file on it."""
    language = LANGUAGES.get(source.suffix, "text")
    return f"# {source.name}\n\n````{language}\n{source.read_text()}\n````\n"


class Links(HTMLParser):
    """What a page of the site links to, what it is made of, and what can be linked to on it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.followed: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        told = {name: value for name, value in attributes if value is not None}
        self.anchors |= {told[name] for name in ("id", "name") if name in told}
        if tag == "a":
            self.followed |= {told["href"]} if "href" in told else set()
        elif tag != "link" or told.get("rel") not in ("canonical", "prev", "next"):
            self.loaded |= {told[name] for name in ("src", "href") if name in told}


def check(site: Path) -> None:
    """Every link of every page leads somewhere, and nothing is loaded from elsewhere."""
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html")}
    wrong = [f"{page.relative_to(site)}: {link}" for page in pages for link in sorted(dead(site, page, pages))]
    wrong += [f"{path.relative_to(site)}: {url}" for path in site.rglob("*.css") for url in fetched(path.read_text())]
    if wrong:
        raise BadSite("links that lead nowhere, or elsewhere for what a page is made of:\n  " + "\n  ".join(wrong))


def dead(site: Path, page: Path, pages: dict[Path, Links]) -> Iterator[str]:
    found = pages[page]
    for link in found.followed | found.loaded:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if link in found.loaded and parts.scheme != "data":
                yield link
            continue
        if page.name == "404.html":
            continue  # its links are seen from wherever somebody got lost
        there = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
        if there.is_dir():
            there = there / "index.html"
        is_anchored = not parts.fragment or there not in pages or unquote(parts.fragment) in pages[there].anchors
        if not there.is_file() or not is_anchored:
            yield link


def fetched(css: str) -> list[str]:
    return re.findall(r"url\(\s*[\"']?((?:https?:)?//[^\"')]+)", css)


if __name__ == "__main__":
    main()
