"""Hooks of mkdocs: files outside of docs/ that its pages link to become pages of the site.

There is one copy of each file, and its links work where it lies. Markdown stays what it is, code is
shown as code, and notebooks are shown cell by cell.
"""

import json
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(
        path.relative_to(ROOT).as_posix()
        for files in ("examples/*.py", "notebooks/*.ipynb", "dppmask_jax/weights/zoo/*.md")
        for path in sorted(ROOT.glob(files))
    ),
)


def page_of(path: str) -> str:
    """The name of the page that a file becomes."""
    return path if path.endswith(".md") else f"{path}.md"


def on_files(files, config):
    """Adds the pages."""
    for path in OUTSIDE:
        files.append(File.generated(config, page_of(path), content=_as_markdown(path)))
    return files


def _as_markdown(path: str) -> str:
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    if path.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        return "\n\n".join(_cell(cell["cell_type"], "".join(cell["source"])) for cell in cells)
    return f"# {Path(path).name}\n\n`{path}`\n\n```python\n{text}```\n"


def _cell(kind: str, text: str) -> str:
    return text if kind == "markdown" else f"```python\n{text}\n```"


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/, and into it from outside, as the site has them."""
    if page.file.src_uri in map(page_of, OUTSIDE):
        return markdown.replace("](docs/", "](")
    markdown = markdown.replace("<details>", "<details markdown>")  # else tables within stay text
    return re.sub(r"\]\(((?:\.\./)+)([^)#]+)", _inside, markdown)


def _inside(link):
    up, path = link.groups()
    return f"]({up[3:]}{page_of(path)}" if path in OUTSIDE else link.group()
