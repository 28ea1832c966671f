"""The site that `make docs` builds: strict about links, whole in its search, read from the disk without a network."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.interop import browser

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "README.md": "# Start\n\n[All](docs/README.md)\n",
    "docs/README.md": "# All\n\n## Guides\n\n| | |\n|---|---|\n| [One](one.md) | first |\n| [Two](two.md) | |\n",
    "docs/one.md": "# One\n\n## Here\n\n[there](../README.md#start), [here](#here), [a program](../x.py)\n",
    "docs/two.md": "# Two\n\nA list:\n- `[one](no-link.md)`\n- two\n\n| a | b |\n|---|---|\n| `x \\| y` | z |\n",
    "x.py": "print('hello')\n",
}
COPIED = ("docs/site.toml", "docs/site.css", "docs/iframe-worker.js", "docs/pictures/logo.svg")
WRONG = [
    # where          what is added                           what is said
    ("docs/one.md",  "[x](six.md)",                          "docs/one.md links to six.md, and there is no docs/"),
    ("docs/one.md",  "[x](../../elsewhere.md)",              "there is no ../elsewhere.md"),
    ("docs/one.md",  "[x](#nowhere)",                        "[x](#nowhere)"),
    ("docs/one.md",  "[x](../README.md#nowhere)",            "anchor does not exist"),
    ("docs/one.md",  '<a href="../x.py#line-9">x</a>',       "anchor does not exist"),
    ("docs/one.md",  "![x](https://example.com/x.png)",      "https://example.com/x.png"),
    ("docs/site.css", "a { background: url(//x.example/) }", "//x.example/"),
    ("docs/six.md",  "# Six",                                "in no table of docs/README.md"),
]  # fmt: skip
WIDE, NARROW = (1280, 900), (390, 844)
LOADED = "performance.getEntriesByType('resource').map(entry => entry.name)"
FOUND = """[...document.querySelectorAll('div')].filter(box => box.shadowRoot)
    .flatMap(box => [...box.shadowRoot.querySelectorAll('a')].map(link => link.href))"""

pytestmark = [
    pytest.mark.peerless,
    pytest.mark.skipif(
        importlib.util.find_spec("zensical") is None, reason="the group docs is not installed: make docs"
    ),
]
needs_a_browser = pytest.mark.skipif(browser.chromium() is None, reason=browser.MISSING)


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("build")
    builder().build(ROOT, target)
    return target / "site"


def index(site: Path) -> list[dict[str, Any]]:
    return list(json.loads((site / "search.js").read_text().removeprefix("var __index = ").rstrip(";\n"))["items"])


def test_search_holds_every_page(site: Path) -> None:
    found = {item["location"].partition("#")[0] for item in index(site)}
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    assert len(pages) > 60
    assert pages - found == set()


def test_words_of_the_tests_are_not_shown(site: Path) -> None:
    page = (site / "docs" / "getting-started.html").read_text()
    assert "forever=8080" not in page
    assert "async def" in page.replace("</span>", "").replace('<span class="k">', "")


def small(root: Path) -> Path:
    for path in COPIED:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, root / path)
    for path, text in SMALL.items():
        (root / path).write_text(text)
    return root


def test_small_site_is_built(tmp_path: Path) -> None:
    assert builder().build(small(tmp_path), tmp_path / "build") == 6
    assert "hello" in (tmp_path / "build" / "site" / "x.py.html").read_text()


def test_markdown_that_github_shows_is_shown_so(tmp_path: Path) -> None:
    """A list right below its paragraph, an escaped bar in a table, brackets in code."""
    builder().build(small(tmp_path), tmp_path / "build")
    page = (tmp_path / "build" / "site" / "docs" / "two.html").read_text()
    assert "<li><code>[one](no-link.md)</code></li>" in page
    assert "<td><code>x | y</code></td>" in page


@pytest.mark.parametrize(("path", "added", "said"), WRONG, ids=[row[1] for row in WRONG])
def test_what_is_wrong_fails_the_build_and_is_named(path: str, added: str, said: str, tmp_path: Path) -> None:
    root, made = small(tmp_path), builder()
    with (root / path).open("a") as file:
        file.write(f"\n{added}\n")
    with pytest.raises(made.BadSite) as failed:
        made.build(root, tmp_path / "build")
    assert said in str(failed.value)


@needs_a_browser
def test_site_is_searched_from_the_disk_and_asks_nobody(site: Path) -> None:
    with browser.browser() as tab:
        tab.resize(*WIDE)
        tab.open((site / "index.html").as_uri())
        tab.until("document.readyState === 'complete' && document.querySelector('.md-search__button') !== null")
        tab.ask("document.querySelector('.md-search__button').click()")
        tab.until("[...document.querySelectorAll('div')].some(box => box.shadowRoot !== null)")
        tab.until("document.activeElement.shadowRoot !== null")
        tab.call("Input.insertText", text="subnet router")
        tab.until(f"({FOUND}).some(link => link.includes('docs/configuration.html'))")
        assert [url for url in tab.ask(LOADED) if not url.startswith("file:")] == []
        assert tab.said == []


@needs_a_browser
@pytest.mark.parametrize(
    "page", ["index.html", "docs/configuration.html", "docs/cli.html", "docs/reference/device.html"]
)
def test_narrow_page_is_not_wider_than_its_window(page: str, site: Path) -> None:
    with browser.browser() as tab:
        tab.resize(*NARROW)
        tab.open((site / page).as_uri())
        tab.until("document.readyState === 'complete' && document.title !== ''")
        assert tab.ask("document.documentElement.scrollWidth") <= NARROW[0]
