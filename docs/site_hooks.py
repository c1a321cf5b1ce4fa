"""Hooks of mkdocs: files outside of docs/ that its pages link to become pages of the site.

There is one copy of each file, and its links work where it lies. CONTRIBUTING.md and CHANGELOG.md
keep their names, code is shown as code, a folder's name stays.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("examples/*.py"))),
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("dppmask_jax/weights/zoo/*.md"))),
)


def page_of(path: str) -> str:
    """The name of the page that a file becomes."""
    return path if path.endswith(".md") else f"{path}.md"


def on_files(files, config):
    """Adds the pages."""
    for path in OUTSIDE:
        text = (ROOT / path).read_text()
        if not path.endswith(".md"):
            text = f"# {Path(path).name}\n\n`{path}`\n\n```python\n{text}```\n"
        files.append(File.generated(config, page_of(path), content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/, and into it from outside, as the site has them."""
    if page.file.src_uri in map(page_of, OUTSIDE):
        return markdown.replace("](docs/", "](")
    markdown = markdown.replace("<details>", "<details markdown>")  # else tables within stay text
    return re.sub(r"\]\(((?:\.\./)+)([^)#]+)", _inside, markdown)


def _inside(link):
    up, path = link.groups()
    return f"]({up[3:]}{page_of(path)}" if path in OUTSIDE else link.group()
