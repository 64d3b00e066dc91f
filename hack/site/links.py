"""A MkDocs hook: in the site each file has the path that it has in the repository.

MkDocs knows the files of `docs/` alone, by paths that begin there, so that a link to `../examples`
leads nowhere. Here they get their paths from the top of the repository, and what they link to
outside `docs/` joins them. So MkDocs itself resolves and checks the links that work on GitHub, and
no link is rewritten.
"""

from __future__ import annotations

import mimetypes
import posixpath
import re
from itertools import takewhile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

_PAGES = ("benchmarks/**/*.md", "CHANGELOG.md")  # as those of docs/, each has to be in nav
_LINK = re.compile(r"(?:\]\(|\]:\s)([^()\s#]+)")  # one in a fence does no harm
_RAW = "raw/"  # before the path of a file whose own path is the page that shows it
_UNSEARCHED = "---\nsearch: {exclude: true}\n---\n\n"  # or whole files fill the list of finds


class Shown(File):
    """A page made of what is no Markdown: the text of a file, or the list of a folder."""

    def is_documentation_page(self) -> bool:
        """Yes, whatever its name ends in."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give the files of docs/ their paths in the repository, and add what the pages link to."""
    docs = Path(config.docs_dir)
    root = docs.parent
    site = Files([])
    for file in files:
        ours = file.src_dir == config.docs_dir
        site.append(_copy(config, f"docs/{file.src_uri}", file.dest_uri) if ours else file)
    for pattern in _PAGES:
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            site.append(_copy(config, name, _html(name)))
    unread = list(site.documentation_pages())
    while unread:
        page = unread.pop()
        for target in _LINK.findall(page.content_string):
            name = posixpath.normpath(posixpath.join(posixpath.dirname(page.src_uri), target))
            path = root / name
            if name in site or name.startswith("..") or not path.exists():
                continue
            if path.is_dir():
                unread.append(_folder(config, path, name))
                site.append(unread[-1])
            elif path.suffix == ".md":
                unread.append(_copy(config, name, _html(name), InclusionLevel.NOT_IN_NAV))
                site.append(unread[-1])
            elif _is_text(path):
                site.append(_copy(config, name, name, uri=_RAW + name))
                site.append(_text(config, path, name))
            else:
                site.append(_copy(config, name, name))
    return site


def _html(name: str) -> str:
    return name.removesuffix(".md") + ".html"


def _is_text(path: Path) -> bool:
    """Whether to show a file's text; pictures that are text (SVG) are not meant."""
    if (mimetypes.guess_type(path.name)[0] or "").startswith("image/"):
        return False
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _copy(
    config: MkDocsConfig,
    name: str,
    dest_uri: str,
    inclusion: InclusionLevel = InclusionLevel.UNDEFINED,
    *,
    uri: str | None = None,
) -> File:
    """A file of the repository; `uri` is the path by which links find it, its own by default."""
    root = Path(config.docs_dir).parent
    file = File(
        uri or name,
        str(root),
        config.site_dir,
        config.use_directory_urls,
        dest_uri=dest_uri,
        inclusion=inclusion,
    )
    file.abs_src_path = str(root / name)
    return file


def _shown(config: MkDocsConfig, name: str, dest_uri: str, markdown: str) -> Shown:
    """A page with a text of ours, outside the navigation unless it is named there."""
    page = Shown(
        name,
        None,
        config.site_dir,
        config.use_directory_urls,
        dest_uri=dest_uri,
        inclusion=InclusionLevel.NOT_IN_NAV,
    )
    page.content_string = markdown
    return page


def _text(config: MkDocsConfig, path: Path, name: str) -> Shown:
    """A page that shows a file's text and links to the file itself."""
    raw = posixpath.relpath(_RAW + name, posixpath.dirname(name) or ".")
    language = path.suffix.removeprefix(".") or path.name.lower()
    text = path.read_text(encoding="utf-8").rstrip()
    markdown = f"# `{name}`\n\n[The file itself]({raw})\n\n`````{language}\n{text}\n`````\n"
    return _shown(config, name, f"{name}.html", _UNSEARCHED + markdown)


def _folder(config: MkDocsConfig, path: Path, name: str) -> Shown:
    """A page that lists a folder's files, each with what its first comment says."""
    lines = [f"# `{name}/`", ""]
    for one in sorted(path.iterdir()):
        if one.is_file() and not one.name.startswith("."):
            about = _about(one)
            lines.append(f"- [{one.name}]({path.name}/{one.name}){about and ': ' + about}")
    return _shown(config, name, f"{name}/index.html", "\n".join(lines))


def _about(path: Path) -> str:
    """The first sentence of the comment that a file begins with; empty without one."""
    lines = path.read_text(encoding="utf-8").splitlines() if _is_text(path) else []
    comment = takewhile(lambda line: line.startswith("# "), lines)
    return " ".join(line[2:] for line in comment).partition(". ")[0].rstrip(".")
