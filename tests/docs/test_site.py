"""The site that `make docs` builds: strict, whole, and readable without any other server."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from unit.test_docs import anchors

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
TABLES = sorted((ROOT / "benchmarks").glob("**/*.md"))
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}


def build_site(root: Path, site: Path) -> Path:
    """What `mkdocs build` does, without a process of its own."""
    build(load_config(str(root / "mkdocs.yml"), site_dir=str(site)))
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(ROOT, tmp_path_factory.mktemp("site"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copied(tmp_path)


def copied(folder: Path) -> Path:
    """The repository, with what is broken below as copies and all else as links."""
    root = folder / "repository"
    root.mkdir()
    for path in ROOT.iterdir():
        if path.name in ("docs", "benchmarks"):
            shutil.copytree(path, root / path.name, ignore=shutil.ignore_patterns("*.gz"))
        elif path.name in ("mkdocs.yml", "pyproject.toml", "CHANGELOG.md"):
            shutil.copy(path, root)
        else:
            (root / path.name).symlink_to(path)
    return root


class Page(HTMLParser):
    """What a built page has: ids, links, pictures, and what a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.headings: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
            if tag in HEADINGS:
                self.headings.append(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append(given["src"])
        names = {"src", "srcset", "poster", "data"} | ({"href"} if tag != "a" else set())
        self.loaded += [given[name] for name in sorted(names) if name in given]


def pages_of(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in sorted(site.glob("**/*.html"))}


def elsewhere(addresses: list[str]) -> list[str]:
    return [one for one in addresses if re.match(r"([a-z]+:)?//", one)]


def in_nav(items: object) -> Iterator[str]:
    if isinstance(items, str):
        yield items
    elif isinstance(items, dict):
        yield from in_nav(list(items.values()))
    elif isinstance(items, list):
        for one in items:
            yield from in_nav(one)


def built(path: Path) -> Path:
    """Where the site has a page of the repository."""
    return path.relative_to(ROOT / "docs" if path.is_relative_to(ROOT / "docs") else ROOT)


def test_the_build_is_strict_about_every_kind_of_mistake() -> None:
    config = load_config(str(ROOT / "mkdocs.yml"))
    assert config.strict
    kinds = {**config.validation.nav, **config.validation.links}
    assert {name for name, level in kinds.items() if level < 30} == set()


@pytest.mark.parametrize("page", [*DOCS, *TABLES], ids=lambda path: path.stem)
def test_each_page_is_in_the_navigation_and_in_the_site(page: Path, site: Path) -> None:
    nav = list(in_nav(load_config(str(ROOT / "mkdocs.yml")).nav))
    assert nav.count(page.relative_to(ROOT).as_posix()) == 1
    assert (site / built(page)).with_suffix(".html").is_file()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path, page in pages_of(site).items():
        assert page.loaded, path
        assert elsewhere(page.loaded) == [], path
        # For these the theme's own script asks another server.
        assert 'class="mermaid"' not in path.read_text()
        assert 'data-md-component="source"' not in path.read_text()
    for path in site.glob("**/*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", path.read_text()) == [], path


def test_what_is_loaded_from_elsewhere_would_be_seen() -> None:
    seen = Page(
        '<link href="https://fonts.example/css"><script src="//cdn.example/x.js"></script>'
        '<img src="http://example/x.png"><img src="x.png"><a href="https://example/">x</a>'
    )
    assert len(elsewhere(seen.loaded)) == 3


def test_every_link_of_every_built_page_leads_to_a_file_and_a_heading(site: Path) -> None:
    pages = pages_of(site)
    followed = 0
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the top of the server
            continue
        for link in page.links + page.pictures:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, f"{path}: {link}"
            followed += 1
    assert followed > 1000


def test_the_pictures_are_there_and_shown(site: Path) -> None:
    shown = {
        (path.parent / name).resolve() for path, page in pages_of(site).items()
        for name in page.pictures
    }  # fmt: skip
    pictures = sorted((ROOT / "docs" / "img").iterdir())
    assert len(pictures) >= 3
    for picture in pictures:
        there = site / "img" / picture.name
        assert there.read_bytes() == picture.read_bytes()
        assert there in shown


def test_search_finds_a_field_an_alert_and_a_law_but_no_whole_files(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    for word, page in (
        ("stabilizationWindowSeconds", "reference.html"),
        ("LLMTaskPoolNoLeader", "operations.html"),
        ("clairvoyant", "benchmarks/control.html"),
    ):
        places = {one["location"].split("#")[0] for one in index if word in one["text"]}
        assert page in places, word
    assert not [one for one in index if one["location"].endswith((".yaml.html", ".json.html"))]


@pytest.mark.parametrize(
    "page", [*DOCS, *TABLES, ROOT / "CHANGELOG.md"], ids=lambda path: path.stem
)
def test_headings_have_the_anchors_that_github_gives_them(page: Path, site: Path) -> None:
    made = Page((site / built(page)).with_suffix(".html").read_text()).headings
    again = {one for one in made if re.sub(r"_\d+$", "", one) in anchors(page)} - anchors(page)
    assert set(made) - again == anchors(page)


def test_headings_with_signs_and_greek_letters_have_them_too(copy: Path) -> None:
    page = copy / "docs" / "law.md"
    odd = ["N + α (U − U_target)", "`min_replicas`, **then** more", "Who's first? I/O", "A -- B"]
    page.write_text(page.read_text() + "".join(f"\n## {title}\n" for title in odd))
    made = Page((build_site(copy, copy.parent / "site") / "law.html").read_text()).headings
    assert set(made) == anchors(page)
    assert {"n--α-u--u_target", "min_replicas-then-more", "whos-first-io", "a----b"} < set(made)


@pytest.mark.parametrize("page", [*DOCS, *TABLES], ids=lambda path: path.stem)
def test_no_page_has_a_diagram_that_only_a_script_of_others_could_draw(page: Path) -> None:
    assert "```mermaid" not in page.read_text(), "draw it as a picture in docs/img"


def test_a_list_goes_on_with_the_number_that_is_written(site: Path) -> None:
    assert '<ol start="4">' in (site / "quickstart.html").read_text()


def test_files_outside_docs_are_shown_and_given(site: Path) -> None:
    listed = Page((site / "examples" / "index.html").read_text()).links
    examples = sorted((ROOT / "examples").glob("*.yaml"))
    assert len(examples) >= 8
    for path in examples:
        assert f"{path.name}.html" in listed
        assert (site / "examples" / path.name).read_bytes() == path.read_bytes()
        shown = (site / "examples" / f"{path.name}.html").read_text()
        assert path.name in Page(shown).links
        words = re.sub(r"<[^>]*>", "", shown)
        assert path.read_text().splitlines()[0].partition(":")[0] in words


def bar(page: Path) -> str:
    text = re.search(r'class="md-banner".*?</aside>', page.read_text(), re.DOTALL)
    assert text is not None, page
    return " ".join(re.sub(r"<[^>]*>", "", text[0]).split())


def test_each_page_says_the_version(site: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for path in site.glob("**/*.html"):
        assert re.search(rf"Version {re.escape(version)}[,.] ", bar(path)), path


def test_a_version_is_unreleased_until_the_changelog_has_a_heading_for_it(copy: Path) -> None:
    project = copy / "pyproject.toml"
    project.write_text(re.sub(r'(?m)^version = ".*"', 'version = "7.8.9"', project.read_text()))
    assert "Version 7.8.9, unreleased" in bar(build_site(copy, copy.parent / "site") / "law.html")
    changes = copy / "CHANGELOG.md"
    changes.write_text(changes.read_text() + "\n## [7.8.9] - 2027-01-01\n\n- All of it.\n")
    after = bar(build_site(copy, copy.parent / "site") / "law.html")
    assert "Version 7.8.9." in after
    assert "unreleased" not in after


class Said(logging.Handler):
    """Keeps what a build says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def warnings_of(root: Path, number: int) -> str:
    """Build what was broken ``number`` times; returns what was said."""
    said, log = Said(), logging.getLogger("mkdocs")
    log.addHandler(said)
    try:
        with pytest.raises(Abort, match=f"Aborted with {number} warnings in strict mode") as ended:
            build_site(root, root.parent / "site")
    finally:
        log.removeHandler(said)
    assert ended.value.code == 1
    return "\n".join(said.lines)


@pytest.mark.parametrize("name", ["docs/orphan.md", "benchmarks/orphan.md"])
def test_a_page_that_is_not_in_the_navigation_fails_the_build(name: str, copy: Path) -> None:
    (copy / name).write_text("# Orphan\n\nNobody leads here.\n")
    assert f'not included in the "nav" configuration:\n  - {name}' in warnings_of(copy, 1)


def test_a_page_of_the_navigation_that_is_not_there_fails_the_build(copy: Path) -> None:
    config = copy / "mkdocs.yml"
    config.write_text(config.read_text() + "  - Lost: docs/lost.md\n")
    assert "A reference to 'docs/lost.md'" in warnings_of(copy, 1)


LEADS_NOWHERE = [
    ("docs/law.md", "none.md"),
    ("docs/law.md", "img/none.png"),
    ("docs/law.md", "api.md#none"),
    ("docs/law.md", "#none"),
    ("docs/law.md", "/api.html"),
    ("docs/law.md", "../benchmarks/none.md"),
    ("docs/law.md", "../benchmarks/control.md#none"),
    ("docs/law.md", "../examples/none.yaml"),
    ("docs/law.md", "../none"),
    ("docs/law.md", "../../beside.md"),  # is there, but not in the repository
    ("benchmarks/engine.md", "../docs/none.md"),
    ("CHANGELOG.md", "docs/none.md"),
]


@pytest.fixture(scope="module")
def said_of_links(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one build says of all these: a build for each took two seconds each."""
    folder = tmp_path_factory.mktemp("links")
    root = copied(folder)
    (folder / "beside.md").write_text("# Beside\n")
    for page, link in LEADS_NOWHERE:
        add_link(root / page, link)
    return warnings_of(root, len(LEADS_NOWHERE))


@pytest.mark.parametrize(("page", "link"), LEADS_NOWHERE)
def test_a_link_that_leads_nowhere_fails_the_build(
    page: str, link: str, said_of_links: str
) -> None:
    assert re.search(rf"Doc file '{page}' contains an? .*link '{link}'", said_of_links)


def add_link(page: Path, link: str) -> None:
    page.write_text(f"{page.read_text()}\n[there]({link})\n")


def test_the_copy_that_the_mistakes_are_put_into_builds_with_any_file_that_is_there(
    copy: Path,
) -> None:
    add_link(copy / "docs" / "law.md", "../README.md#measured")
    add_link(copy / "docs" / "law.md", "../hack/site/overrides/site.css")
    made = build_site(copy, copy.parent / "site")
    links = Page((made / "law.html").read_text()).links
    assert "README.html#measured" in links
    assert "hack/site/overrides/site.css.html" in links
