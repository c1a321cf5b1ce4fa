import runpy

import tiny

DOCS = tiny.ROOT / "docs"


def test_the_drawing_is_of_the_imports():
    drawing = runpy.run_path(str(DOCS / "draw_rooms.py"))
    assert (DOCS / "architecture.svg").read_text() == drawing["svg"](), "run `make docs`"


def test_what_is_to_be_copied_is_there():
    page = (DOCS / "architecture.md").read_text()
    rows = [row.split("`") for row in page.splitlines() if "base.py` |" in row]
    assert len(rows) == 7
    for _, template, _, name, _, line, _, *_, contract, _ in rows:
        texts = [
            (tiny.ROOT / "dppmask_jax" / path).read_text() for path in (template, line, contract)
        ]
        assert f"{name}" in texts[1]
