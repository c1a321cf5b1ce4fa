"""The documentation site: what it is built of, and its pages in a browser."""

import ast
import functools
import html.parser
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
import tiny

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
# Loads each page at two widths and posts what it finds. A table may be wider than a phone, since it
# scrolls by itself; a page may not.
LOOK = """<!doctype html><link rel="icon" href="data:,"><script>
const pages = PAGES, found = [];
async function look(page, width) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.src = page;
  const loaded = new Promise(done => frame.onload = done);
  document.body.append(frame);
  await loaded;
  const inside = frame.contentDocument;
  for (const image of inside.images) {
    image.loading = "eager";
    await image.decode().catch(() => 0);
  }
  await inside.fonts.ready;
  const root = inside.documentElement;
  found.push({page, width, title: inside.title, heading: inside.querySelector("h1")?.innerText,
    missing: [...inside.images].filter(i => !i.naturalWidth).map(i => i.src),
    wider: root.scrollWidth - frame.clientWidth});
  frame.remove();
}
onload = async () => {
  for (const page of pages) for (const width of [390, 1400]) await look(page, width);
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
};
</script><body></body>"""


class Links(html.parser.HTMLParser):
    """The identifiers of a page, and the addresses that it names."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.addresses, self.loaded = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if attrs.get("href"):
            self.addresses.append(attrs["href"])
        loads = tag in ("script", "img", "iframe") or attrs.get("rel") in ("stylesheet", "icon")
        self.loaded += [attrs[name] for name in ("src", "href") if loads and attrs.get(name)]


class Server(http.server.SimpleHTTPRequestHandler):
    """The built site, the page that looks at its pages, and what that found."""

    pages, found, missing = (), [], []

    def do_GET(self):
        if self.path != "/look.html":
            return super().do_GET()
        body = LOOK.replace("PAGES", json.dumps(self.pages)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.found.append(json.loads(self.rfile.read(length)))
        self.send_response(204)
        self.end_headers()

    def send_error(self, code, *args, **kwargs):
        self.missing.append((code, self.path))
        return super().send_error(code, *args, **kwargs)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow  # the site is built
def test_links_and_anchors_lead_somewhere(site):
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > 30
    broken = []
    for path, page in pages.items():
        outside = [name for name in page.loaded if urllib.parse.urlsplit(name).netloc]
        assert not outside, f"{path.name} loads {outside}"
        for address in page.addresses:
            parts = urllib.parse.urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            name = urllib.parse.unquote(parts.path)
            to = site / name[1:] if name.startswith("/") else path.parent / name
            to = Path(os.path.normpath(to if name else path))
            to = to / "index.html" if to.is_dir() else to
            anchor = urllib.parse.unquote(parts.fragment)
            if not to.exists() or (anchor and to in pages and anchor not in pages[to].anchors):
                broken.append(f"{path.relative_to(site)}: {address}")
    assert not broken


@pytest.mark.slow  # a browser opens every page, twice
@pytest.mark.skipif(not BROWSER, reason="no browser here: apt-get install chromium")
def test_pages_in_a_browser(site, tmp_path):
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))
    answer = type("Answer", (Server,), {"pages": pages, "found": [], "missing": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(answer, directory=str(site))
    )
    posted = threading.Event()
    answer.do_POST = lambda self: (Server.do_POST(self), posted.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    said = tmp_path / "said"
    with said.open("w") as stderr:
        # No name but this machine's is found: a page that loads something from elsewhere says so.
        browser = subprocess.Popen(
            [
                BROWSER, "--headless", "--disable-gpu", "--disable-background-networking",
                "--enable-logging=stderr",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
                f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1500,1000",
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                "--remote-debugging-port=0",  # else it ends as soon as the page has loaded
                f"http://127.0.0.1:{server.server_port}/look.html",
            ],
            stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
        try:
            assert posted.wait(900), said.read_text()[-2000:]
        finally:
            browser.terminate()
            browser.wait(20)
            server.shutdown()
            server.server_close()
    (found,) = answer.found
    console = re.findall(r"CONSOLE.*", said.read_text())
    assert not console and not answer.missing
    assert len(found) == 2 * len(pages)
    for page in found:
        assert page["heading"] or page["page"] == "404.html", page
        assert not page["missing"] and page["wider"] <= 0, page


def _documented(path: Path):
    """(function or class, its docstring) of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
            yield node, text


def _takes(node) -> set[str]:
    """The names of what a function, or a class's `__init__`, takes."""
    if isinstance(node, ast.ClassDef):
        own = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        node = next((part for part in own if part.name == "__init__"), None)
        if node is None:
            return set()
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [more for more in (arguments.vararg, arguments.kwarg) if more]
    return {argument.arg for argument in every}


def test_documented_arguments_are_taken():
    wrong, seen = [], 0
    for path in sorted((tiny.ROOT / "dppmask_jax").rglob("*.py")):
        for node, text in _documented(path):
            listed = re.search(r"^Args:\n((?:(?:  .*)?\n?)+)", text, re.MULTILINE)
            for names in re.findall(r"^  (\*{0,2}\w[\w, *]*):", listed[1] if listed else "", re.M):
                for name in re.split(r",\s*", names):
                    seen += 1
                    if name.strip("* ") not in _takes(node):
                        wrong.append(f"{path.relative_to(tiny.ROOT)}: {node.name}: {name}")
    assert seen > 500
    assert not wrong
