"""The site's hooks: links lead to pages of the site, and nothing is loaded from elsewhere."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from mkdocs.exceptions import PluginError

HOOKS = Path(__file__).resolve().parents[2] / "tools" / "site" / "hooks.py"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", HOOKS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("origin", "link", "target"),
    [
        ("README.md", "docs/design.md", "design.md"),
        ("docs/faq.md", "../README.md", "index.md"),
        ("docs/faq.md", "design.md", "design.md"),
        ("docs/examples.md", "../examples/mlp.py", "repository/examples/mlp.py.md"),
        ("README.md", "LICENSE", "license.md"),
        ("README.md", "examples/", "examples.md"),
    ],
)
def test_a_link_of_the_repository_leads_to_a_page(
    hooks: ModuleType, origin: str, link: str, target: str
) -> None:
    assert hooks.target_of(origin, link) == target


def test_code_is_left_as_it_is(hooks: ModuleType) -> None:
    text = "a [b](../README.md)\n\n- c\n  - d\n\n```python runnable\nx = f[0](y)\n```\n"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="faq.md"))
    found = hooks.on_page_markdown(text, page=page, config=None, files=None)
    assert found == "a [b](index.md)\n\n- c\n    - d\n\n```python\nx = f[0](y)\n```\n"


@pytest.mark.parametrize(
    ("html", "fine"),
    [
        ('<script src="assets/a.js"></script><a href="https://tvm.apache.org">TVM</a>', True),
        ('<link rel="canonical" href="https://example.org/">', True),
        ('<script src="https://example.org/a.js"></script>', False),
        ('<link href="//example.org/a.css" rel="stylesheet">', False),
        ('<img alt="a" src="https://example.org/a.png">', False),
    ],
)
def test_a_page_that_loads_something_ends_the_build(
    hooks: ModuleType, tmp_path: Path, html: str, fine: bool
) -> None:
    (tmp_path / "page.html").write_text(html)
    config = SimpleNamespace(site_dir=str(tmp_path))
    if fine:
        hooks.on_post_build(config=config)
    else:
        with pytest.raises(PluginError, match=r"page\.html loads"):
            hooks.on_post_build(config=config)
