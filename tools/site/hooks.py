"""What mkdocs does beside rendering docs/: README.md is the first page, a file of the repository
that a page links to is a page too, and nothing that the site loads is elsewhere.

Links are written as they work in the repository; `target_of` says where each leads on the site.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""Pages that are not in docs/, by their file."""
STANDING_FOR = {**PAGES, "LICENSE": "license.md", "examples": "examples.md"}
"""Pages that stand for a file or folder of the repository."""
SOURCES = "repository"
"""Folder of the pages that show a file."""

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()(?![a-z]+:)([^)#\s]+)((?:#[^)\s]*)?\))")
NESTED = re.compile(r"^  (?=[-*] )", re.MULTILINE)
"""A list in a list, which Python-Markdown wants four spaces in front of."""
RUNNABLE = re.compile(r"^```python runnable$", re.MULTILINE)
LOADED = re.compile(
    r"<(?:script|img|iframe|source|audio|video)\b[^>]*\ssrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?=[^>]*\srel=[\"']?(?:stylesheet|icon|preconnect|preload))[^>]*"
    r"\shref=[\"']?(?:https?:)?//[^>]*>",
    re.IGNORECASE,
)


def origin_of(page: str) -> str:
    """The file in the repository that a page of the site is made of."""
    return next((file for file, name in PAGES.items() if name == page), f"docs/{page}")


def target_of(origin: str, link: str) -> str:
    """The page of the site that a link in a file of the repository leads to."""
    path = normpath(join(dirname(origin), link))
    if path in STANDING_FOR:
        return STANDING_FOR[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{SOURCES}/{path}.md"


def outside_fences(text: str, change: Any) -> str:
    """`text` with everything that is no fenced code changed."""
    parts, end = [], 0
    for fence in FENCED.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def shown(path: str) -> str:
    """A page that shows a file."""
    language = {".py": "python", ".j2": "jinja", ".json": "json"}.get(Path(path).suffix, "text")
    source = (ROOT / path).read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n````{language}\n{source}````\n"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    texts = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for path, name in PAGES.items():
        texts[name] = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=texts[name]))
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    files.append(File.generated(config, "license.md", content=f"# Licence\n\n```text\n{text}```\n"))
    for page, text in texts.items():
        for _, link, _ in LINK.findall(FENCED.sub("", text)):
            target = target_of(origin_of(page), link)
            if target.startswith(f"{SOURCES}/") and files.get_file_from_path(target) is None:
                path = target.removeprefix(f"{SOURCES}/").removesuffix(".md")
                files.append(File.generated(config, target, content=shown(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where they are on the site."""
    name = page.file.src_uri
    if name.startswith(f"{SOURCES}/"):
        return markdown

    def on_site(link: re.Match[str]) -> str:
        target = target_of(origin_of(name), link[2])
        return f"{link[1]}{relpath(target, dirname(name) or '.')}{link[3]}"

    markdown = outside_fences(markdown, lambda text: NESTED.sub("    ", LINK.sub(on_site, text)))
    return RUNNABLE.sub("```python", markdown)


def on_post_build(*, config: MkDocsConfig) -> None:
    """Raise PluginError for a page that loads something from elsewhere."""
    for page in Path(config.site_dir).rglob("*.html"):
        found = LOADED.search(page.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{page.name} loads {found[0]}")
