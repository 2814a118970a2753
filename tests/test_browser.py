"""The explorer as a person meets it: in a real, headless Chromium, on the page that `sas-nb explore` serves and in JupyterLab.
Screenshots are kept in pytest's temporary folder, or in $SAS_NB_SCREENSHOTS where that is set."""
import importlib.util, json, os, re, secrets, shutil, socket, subprocess, sys, time, urllib.error, urllib.request
from contextlib import contextmanager
from pathlib import Path
import pytest
from sas_nb.concept import Concept
from sas_nb.explore.serve import site
from sas_nb.lab.draw import render
from sas_nb.lab.specs import caption
from sas_nb.lab.world import heldout_spec
from sas_nb.learning import learn_many
from sas_nb.recipe import Recipe, Run

CHROMIUM = os.environ.get("SAS_NB_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
MISSING = [f"Python package {m} (pip install {m})" for m in ("playwright", "voila", "jupyterlab") if not importlib.util.find_spec(m)] + ([] if Path(CHROMIUM).exists() else ["chromium (apt install chromium)"])
pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(MISSING), reason=f"a browser test needs {', '.join(MISSING)}")]
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
FEW = Recipe.unregularised().with_(both=dict(steps=2, batch=2), rank=2)
PATIENCE = 180_000  # ms: a kernel loads torch and the model


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    "Three concepts over one basis, hardly trained, saved."
    home = tmp_path_factory.mktemp("concepts")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SAS_NB_CACHE", str(home/"cache"))
        specs = [heldout_spec(i) for i in (0, 2, 3)]
        prompts = [(caption(s).static.replace("a ", "a [v] ", 1), "moving [u] dancing".replace("moving", "he is" if " man " in caption(s).static else "she is")) for s in specs]
        made = learn_many([render(s, fps=12)[:5] for s in specs], prompts, "tiny", FEW, Run(progress=False))
    return [c.save(home/name) for name, c in zip(("ann", "bea", "dan"), made)]


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("SAS_NB_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


@pytest.fixture(scope="module") # closed before another file opens its own: one at a time in a process
def chromium():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@contextmanager
def window(chromium):
    "A page that remembers what went wrong in it."
    page = chromium.new_page(viewport=dict(width=1150, height=950))
    page.errors = []
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    page.set_default_timeout(PATIENCE)
    try: yield page
    finally: page.close()


@pytest.fixture(scope="module")
def served(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("explored")
    with site(folders, port=free_port(), out=out, steps=3, preview=1, faces=3) as address: yield address, out


@pytest.fixture(scope="module")
def page(served, chromium, shots):
    with window(chromium) as page:
        page.goto(served[0])
        page.wait_for_selector(".sas-screen video")
        page.wait_for_function("document.querySelectorAll('.sas-pad image').length == 6") # faces on both maps come last: all is quiet now
        yield page


def shown(page): return int(page.locator(".sas-screen").first.get_attribute("data-shown"))
def point(page, k): return page.locator(".sas-pad .point").nth(k)
def where(page, k): return point(page, k).get_attribute("aria-valuetext")
def status(page): return page.locator(".sas-screen [role=status]").first.inner_text()


def until_new(page, before):
    "Wait for the full video after a change."
    page.wait_for_function("n => +document.querySelector('.sas-screen').dataset.shown > n && document.querySelector('.sas-screen video')", arg=before)


def test_slider_by_keyboard(page, shots):
    handle, before = page.get_by_role("slider", name=re.compile("appearance strength")), shown(page)
    handle.focus(); page.keyboard.press("ArrowRight"); page.keyboard.press("ArrowRight")
    until_new(page, before)
    page.wait_for_function("document.querySelector('.sas-code pre').textContent.includes('appearance=1.1,')")
    page.screenshot(path=shots/"page.png", full_page=True)
    assert not page.errors


def test_point_by_keyboard(page):
    before, at = shown(page), where(page, 1)
    point(page, 1).focus(); page.keyboard.press("ArrowRight"); page.keyboard.press("Shift+ArrowUp")
    until_new(page, before)
    assert where(page, 1) != at
    page.keyboard.press("Home")
    page.wait_for_function("v => document.querySelectorAll('.sas-pad .point')[1].getAttribute('aria-valuetext') == v", arg=at)
    assert not page.errors


def test_drag(page, shots):
    before, at, box = shown(page), where(page, 0), page.locator(".sas-pad .board").first.bounding_box()
    inside = lambda x, y: (box["x"]+x*box["width"], box["y"]+y*box["height"])
    page.mouse.move(*inside(.6, .35)); page.mouse.down()
    for k in range(5): page.mouse.move(*inside(.6+.03*k, .35-.02*k))
    page.wait_for_selector(".sas-screen img")             # a preview while it is held
    page.screenshot(path=shots/"drag.png", full_page=True)
    page.mouse.up()
    until_new(page, before)                               # the full video after it is let go
    assert where(page, 0) != at and "look_by" in page.locator(".sas-code pre").text_content()
    assert not page.errors


def test_mark_and_words(page):
    page.get_by_role("button", name=re.compile("^dan: start from here")).nth(1).press("Enter")
    page.wait_for_function("document.querySelector('.sas-code pre').textContent.includes(\"dance='dan'\")")
    box = page.get_by_label("Prompt")
    box.fill("a [v] woman in the sn")
    page.wait_for_function("[...document.querySelectorAll('datalist option')].some(o => o.value == 'a [v] woman in the snow')")
    before = shown(page)
    box.fill("a [v] woman in the snow"); until_new(page, before)
    assert not page.errors


def test_pin_and_save(page, served, shots):
    page.get_by_role("button", name=re.compile("^dan: ")).nth(1).press("Enter")
    page.get_by_role("slider", name=re.compile("appearance strength")).fill("1.1")
    page.wait_for_function("['appearance=1.1,', \"dance='dan'\"].every(t => document.querySelector('.sas-code pre').textContent.includes(t))")
    page.wait_for_function("document.querySelector('.sas-screen [role=status]').textContent.startsWith('full')")
    page.get_by_role("button", name="Pin", exact=True).click()
    page.wait_for_selector(".sas-small video")
    name = page.get_by_label("Name"); name.fill("found here"); name.press("Enter")
    page.get_by_role("button", name="Save as concept").click()
    page.get_by_text("Wrote").wait_for()
    page.screenshot(path=shots/"saved.png", full_page=True)
    concept = Concept.load(served[1]/"found here")
    assert concept.info["position"]["dance"] == "dan" and concept.appearance == pytest.approx(1.1) and concept.generate(steps=1, guidance=1).frames.shape[0] == 5
    assert not page.errors


@pytest.mark.parametrize("path", ["voila/files/explore.ipynb", "voila/files/voila.json", "voila/files/log", "voila/files/..%2f..%2fetc/passwd", "voila/static/..%2f..%2f..%2fetc/passwd",
                                  "voila/tree", "voila/api/contents", "api/contents", "voila/templates/lab/static/..%2f..%2fconf.json"])
def test_nothing_else_of_the_disk_is_served(served, path):
    root, _, token = served[0].partition("?")
    for key in ("", f"?{token}"):
        try: answer = urllib.request.urlopen(f"{root}{path}{key}", timeout=60)
        except urllib.error.HTTPError as e: assert e.code in (403, 404, 405, 500)
        else:
            body = answer.read()
            assert not key and "/login" in answer.url and b"root:" not in body and b"nbformat" not in body


def test_page_needs_its_secret(served):
    body = urllib.request.urlopen(served[0].partition("?")[0], timeout=60).read().decode()
    assert "password" in body.lower() and "sas-pad" not in body # voila asks for it


@pytest.fixture(scope="module")
def lab(folders, tmp_path_factory):
    "JupyterLab with a notebook of one cell."
    home, token, port = tmp_path_factory.mktemp("lab"), secrets.token_urlsafe(8), free_port()
    source = f"from sas_nb.explore import Explorer\nExplorer({[str(f) for f in folders]!r}, faces=0, steps=2, preview=1)"
    cell = dict(cell_type="code", id="one", metadata={}, outputs=[], execution_count=None, source=source)
    (home/"try.ipynb").write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=dict(name="python3", display_name="Python 3", language="python")), nbformat=4, nbformat_minor=5)))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home}", "--allow-root",
               "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    private = os.environ | {f"JUPYTER{k}_DIR": str(home/k) for k in ("_CONFIG", "_RUNTIME", "LAB_SETTINGS", "LAB_WORKSPACES")}
    with open(home/"log", "w") as log: server = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, env=private, start_new_session=True)
    try:
        for _ in range(600):
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=2); break
            except OSError: assert server.poll() is None, (home/"log").read_text(); time.sleep(.2)
        yield f"http://127.0.0.1:{port}/lab/tree/try.ipynb?token={token}"
    finally: server.terminate(); server.wait(30)


def test_in_jupyterlab(lab, chromium, shots):
    with window(chromium) as page:
        page.goto(lab)
        page.locator(".jp-Cell .cm-content").first.click()
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector(".sas-screen video")
        before = shown(page)
        point(page, 0).focus(); page.keyboard.press("ArrowRight")
        until_new(page, before)
        page.screenshot(path=shots/"lab.png")
        assert not page.errors


def test_command_serves_until_it_is_told_to_stop(folders, tmp_path):
    import signal
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "sas_nb.cli", "explore", *map(str, folders), "--port", str(port), "--no-browser"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = server.stdout.readline()
        assert f"http://127.0.0.1:{port}/?token=" in line, line
        assert "/login" in urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).url
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally: server.kill()
    with pytest.raises(OSError): socket.create_connection(("127.0.0.1", port), 5)
