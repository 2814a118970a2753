"""The explorer as a person meets it: in a real, headless Chromium, on the page that `sas-nb explore` serves and in JupyterLab.
Screenshots are kept in pytest's temporary folder, or in $SAS_NB_SCREENSHOTS where that is set."""
import importlib.util, json, os, re, secrets, shutil, socket, subprocess, sys, time, urllib.error, urllib.request
from contextlib import contextmanager
from pathlib import Path
import numpy as np
import pytest
from sas_nb.atlas.places import zoo_folder
from sas_nb.concept import Concept
from sas_nb.explore.serve import site
from sas_nb.folders import zoo_list
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


def in_turn():
    "An encoder may have made this process real-time. A browser would inherit that, for all its threads, and starve the machine."
    if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="module") # closed before another file opens its own: one at a time in a process
def chromium():
    from playwright.sync_api import sync_playwright
    in_turn()
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        try: yield browser
        finally: browser.close()


@contextmanager
def window(chromium, width=1150, height=950, **options):
    "A page that remembers what went wrong in it."
    page = chromium.new_page(viewport=dict(width=width, height=height), **options)
    page.errors = []
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    page.set_default_timeout(PATIENCE)
    try: yield page
    finally: page.context.close()


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


def view(page, name): page.get_by_role("group", name="ways to choose").get_by_role("button", name=re.compile(name)).click()
def shown(page): return int(page.locator(".sas-screen").first.get_attribute("data-shown"))
def point(page, k): return page.locator(".sas-pad .point").nth(k)
def where(page, k): return point(page, k).get_attribute("aria-valuetext")
def status(page): return page.locator(".sas-screen [role=status]").first.inner_text()


def until_new(page, before):
    "Wait for the full video after a change."
    page.wait_for_function("n => +document.querySelector('.sas-screen').dataset.shown > n && document.querySelector('.sas-screen video')", arg=before)


def test_slider_by_keyboard(page, shots):
    handle, before = page.get_by_role("slider", name=re.compile("look: how strong")), shown(page)
    handle.focus(); page.keyboard.press("ArrowRight"); page.keyboard.press("ArrowRight")
    until_new(page, before)
    page.wait_for_function("document.querySelector('.sas-code pre').textContent.includes('appearance=1.1,')")
    page.screenshot(path=shots/"page.png", full_page=True)
    assert not page.errors


def test_point_by_keyboard(page):
    view(page, "Maps")
    before, at = shown(page), where(page, 1)
    point(page, 1).focus(); page.keyboard.press("ArrowLeft"); page.keyboard.press("Shift+ArrowDown")
    until_new(page, before)
    assert where(page, 1) != at
    page.keyboard.press("Home")
    page.wait_for_function("v => document.querySelectorAll('.sas-pad .point')[1].getAttribute('aria-valuetext') == v", arg=at)
    assert not page.errors


def test_drag(page, shots):
    view(page, "Maps")
    before, at, box = shown(page), where(page, 0), page.locator(".sas-pad .board").first.bounding_box()
    inside = lambda x, y: (box["x"]+x*box["width"], box["y"]+y*box["height"])
    page.mouse.move(*inside(.6, .35)); page.mouse.down()
    for k in range(5): page.mouse.move(*inside(.6+.03*k, .35-.02*k))
    page.wait_for_selector(".sas-screen canvas")          # a preview while it is held
    page.screenshot(path=shots/"drag.png", full_page=True)
    page.mouse.up()
    until_new(page, before)                               # the full video after it is let go
    chosen = page.get_by_label("Look of", exact=True).input_value()
    assert page.locator(".sas-pad output").first.inner_text().startswith(f"{chosen} ")  # the choice follows: whoever has most of it
    assert where(page, 0) != at and "look_by" in page.locator(".sas-code pre").text_content()
    assert not page.errors


def test_a_mark(page):
    view(page, "Maps")
    page.get_by_role("button", name=re.compile("^dan: start from here")).nth(1).press("Enter")
    page.wait_for_function("document.querySelector('.sas-code pre').textContent.includes(\"dance='dan'\")")
    assert not page.errors


SHIFTS = """() => {
  globalThis.shifts = []
  new PerformanceObserver(list => shifts.push(...list.getEntries().map(e => e.value))).observe({ type: "layout-shift" })
}"""


def test_typing_moves_nothing_and_marks_what_is_unknown(page, shots):
    box, words = page.get_by_label("Prompt"), page.locator(".sas-words")
    assert box.input_value().startswith("a [v] ")  # a text to edit, no placeholder
    box.fill("")
    page.wait_for_timeout(700)
    page.evaluate(SHIFTS)
    before, film = shown(page), page.locator(".sas-show .sas-screen video, .sas-show .sas-screen canvas").bounding_box()
    box.press_sequentially("a [v] womn in a red shirt in the sn", delay=60)
    page.wait_for_function("document.querySelectorAll('.sas-words mark').length == 2")
    assert words.locator("mark").all_inner_texts() == ["womn", "sn"]
    assert page.evaluate("getComputedStyle(document.querySelector('.sas-words textarea')).backgroundColor") == "rgba(0, 0, 0, 0)"  # or the marks behind it could not be seen
    page.wait_for_function("document.querySelector('.sas-show strong').textContent == 'still the video before'")
    page.screenshot(path=shots/"typing.png")
    for near in ("woman", "snow"): words.locator(".sas-near").get_by_role("button", name=near, exact=True).click()
    assert box.input_value() == "a [v] woman in a red shirt in the snow"
    until_new(page, before)
    page.wait_for_function("document.querySelector('.sas-show strong').textContent == ''")
    page.wait_for_timeout(600)
    assert page.evaluate("shifts") == [] and page.locator(".sas-show .sas-screen video").bounding_box() == film
    assert not page.errors


def test_chips(page):
    before = shown(page)
    page.locator(".sas-chips").get_by_role("button", name="at night").click()
    until_new(page, before)
    assert "at night" in page.get_by_label("Prompt").input_value()
    assert page.locator(".sas-chips").get_by_role("button", name="at night").get_attribute("aria-pressed") == "true"
    page.locator(".sas-chips").get_by_role("button", name="at night").click()


def test_faces_table_and_line_play_in_step(page, shots):
    view(page, "Faces")
    assert page.locator(".sas-view-faces .sas-cell").count() == 3
    page.locator(".sas-view-faces [data-key=bea]").click()
    page.wait_for_function("['look', 'dance'].every(k => document.querySelector('.sas-code pre').textContent.includes(`${k}='bea'`))")
    for name, cells in (("dance", 9), ("A to B", 5)):
        view(page, name)
        page.wait_for_function("n => [...document.querySelectorAll('.sas-view .sas-strip')].filter(c => c.offsetParent && c.dataset.frames).length >= n", arg=cells)
        page.wait_for_timeout(300)
        places = page.evaluate("[...document.querySelectorAll('.sas-view .sas-strip')].filter(c => c.offsetParent).map(c => c.style.backgroundPositionX)")
        assert len(places) >= cells and len(set(places)) == 1, places
        page.screenshot(path=shots/f"{name.split()[0]}.png")
    assert not page.errors


def test_pin_and_save(page, served, shots):
    view(page, "Maps")
    page.get_by_role("button", name=re.compile("^dan: ")).nth(1).press("Enter")
    page.get_by_role("slider", name=re.compile("look: how strong")).fill("1.1")
    page.wait_for_function("['appearance=1.1,', \"dance='dan'\"].every(t => document.querySelector('.sas-code pre').textContent.includes(t))")
    page.wait_for_selector(".sas-screen video[aria-label*=' x 1.1; dance of dan']")  # a preview is pinned as a picture
    page.get_by_role("button", name="Pin", exact=True).click()
    view(page, "Pinned")
    page.wait_for_selector(".sas-pin video")
    view(page, "Keep")
    name = page.get_by_label("Name"); name.fill("found here"); name.press("Enter")
    page.get_by_role("button", name="Save as concept").click()
    page.get_by_text("Wrote").wait_for()
    page.screenshot(path=shots/"saved.png", full_page=True)
    concept = Concept.load(served[1]/"found here")
    assert concept.info["position"]["dance"] == "dan" and concept.appearance == pytest.approx(1.1) and concept.generate(steps=1, guidance=1).frames.shape[0] == 5
    assert not page.errors


VIEWS = ("Faces", "Maps", "dance", "A to B", "Pinned", "Keep")
TAB_STOPS = """[...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")].filter(
  e => e.tabIndex >= 0 && !e.disabled && e.checkVisibility())"""
SCROLLER = "document.querySelector('#rendered_cells')" # Voila's own
AXE = importlib.util.find_spec("axe_playwright_python")


def swipe(page, x, y, by):
    "As a finger does it."
    session = page.context.new_cdp_session(page)
    touch = lambda kind, *points: session.send("Input.dispatchTouchEvent", dict(type=kind, touchPoints=[dict(x=x, y=p) for p in points]))
    touch("touchStart", y)
    for k in range(1, 9): touch("touchMove", y + by*k/8)
    touch("touchEnd")
    page.wait_for_timeout(500)


def serious(page):
    "What axe-core finds that keeps people out."
    if not AXE: pytest.skip("needs axe-playwright-python")
    page.evaluate((Path(AXE.submodule_search_locations[0])/"axe.min.js").read_text() + "; undefined")
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [(v["id"], [n["html"][:150] for n in v["nodes"][:3]]) for v in found if v["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("name, size, options", [("desk", (1280, 800), {}), ("dark", (1280, 800), dict(color_scheme="dark")), ("phone", (390, 844), dict(has_touch=True, is_mobile=True))])
def test_every_screen(served, chromium, shots, name, size, options):
    with window(chromium, *size, **options) as page:
        strangers = []
        page.on("request", lambda r: strangers.append(r.url) if not re.match(r"(http|ws)://127\.0\.0\.1|blob:|data:", r.url) else None)
        page.goto(served[0])
        page.wait_for_selector(".sas-screen video")
        page.wait_for_function("document.querySelectorAll('.sas-view-faces .sas-strip[data-frames]').length == 3")
        page.screenshot(path=shots/f"{name}.png")
        video = page.locator(".sas-screen video").bounding_box()
        assert video["y"] < 200 and video["x"] + video["width"] <= size[0] and video["width"] >= 330
        before = page.evaluate(f"{TAB_STOPS}.filter(e => e.compareDocumentPosition(document.querySelector('.sas-screen')) & 4).length")
        assert 3 <= before <= 20 and page.evaluate(f"{TAB_STOPS}.length") < 90
        assert page.locator(".sas-explorer h1").inner_text() and len(page.locator(".sas-examples button").all()) == 3
        for example in page.locator(".sas-examples button").all():
            box = example.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= size[0]  # all three can be read
        for v in VIEWS:
            view(page, v)
            if name == "phone":
                tabs, film = (page.locator(s).first.bounding_box() for s in (".sas-views", ".sas-screen"))
                assert film["y"] + film["height"] <= tabs["y"] + 1 and tabs["y"] + tabs["height"] < 700  # what was chosen is in sight
            wide, tall = page.evaluate(f"[{SCROLLER}.scrollWidth, {SCROLLER}.scrollHeight]")
            assert wide <= size[0] and (name == "phone" or tall <= size[1]), (v, wide, tall)
            if name == "phone": page.screenshot(path=shots/f"phone-{v.split()[0]}.png", full_page=True)
            if v == "Maps" or name != "dark" and v in ("Faces", "Keep"): assert not serious(page), v
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 23, 27)" if name == "dark" else "rgb(255, 255, 255)")
        around = page.evaluate("(() => { const all = []; for (let e = document.querySelector('.sas-explorer').parentElement; e; e = e.parentElement) all.push(getComputedStyle(e).backgroundColor); return all })()")
        assert {*around} <= {paper, "rgba(0, 0, 0, 0)"}  # no frame around it
        box = page.get_by_label("Prompt")
        box.fill("a womann wearing trouserz in the snoww and xyzzy foo bar")
        page.wait_for_function("document.querySelectorAll('.sas-words mark').length == 6")
        chips = page.locator(".sas-near").get_by_role("button")
        assert 3 <= chips.count() <= 9 and chips.first.inner_text() == "woman" and "and 3 more" in page.locator(".sas-near").inner_text()
        for chip in chips.all():
            at = chip.bounding_box()
            assert at["x"] >= 0 and at["x"] + at["width"] <= size[0]
        assert page.evaluate(f"{SCROLLER}.scrollWidth") <= size[0]
        if name == "phone":
            view(page, "Maps")
            for start in (".sas-view-maps .board", ".sas-chips"):
                page.locator(start).first.scroll_into_view_if_needed()
                box, at = page.locator(start).first.bounding_box(), page.evaluate(f"{SCROLLER}.scrollTop")
                swipe(page, box["x"]+6, min(max(box["y"]+20, 420), 800), 150 if at > 200 else -150)
                assert page.evaluate(f"{SCROLLER}.scrollTop") != at  # a swipe scrolls
            assert page.evaluate("document.querySelector('.sas-screen').getBoundingClientRect().top") < 200  # and the video stays
        assert not page.errors and not strangers


FRAMES = """() => {
  const { frames, width, height } = document.querySelector(".sas-screen canvas")
  const pixels = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true })
  return frames.map(f => {
    pixels.drawImage(f, 0, 0)
    return Array.from(pixels.getImageData(0, 0, width, height).data)
  })
}"""
HEAD = (slice(None), slice(14, 32), slice(20, 44))  # where the heads of the shipped people are, of 64 pixels


def preview(page, before):
    "The frames of the preview that comes after a change, from 0 to 1."
    page.wait_for_function("n => +document.querySelector('.sas-screen').dataset.shown > n && document.querySelector('.sas-screen canvas')?.frames", arg=before)
    page.wait_for_function("document.querySelector('.sas-show strong').textContent == ''")
    frames = np.array(page.evaluate(FRAMES), float)/255
    return frames.reshape(len(frames), 64, 64, 4)[..., :3]


def middle(box): return box["x"] + box["width"]/2, box["y"] + box["height"]/2


def drag_to(page, name):
    "Drag the ring on the map of looks to somebody's face, as a hand does it."
    (x, y), to = middle(point(page, 0).bounding_box()), middle(page.locator(f".sas-pad [data-name='{name}'] > :first-child").first.bounding_box())
    page.mouse.move(x, y); page.mouse.down()
    for k in range(1, 4): page.mouse.move(*(a + (b - a)*k/3 for a, b in zip((x, y), to)))
    page.wait_for_function("n => document.querySelector('.sas-screen canvas')?.getAttribute('aria-label').includes(`look of ${n};`)", arg=name)
    page.mouse.up()


@pytest.mark.parametrize("some", [pytest.param(slice(0, 3), id="three"), pytest.param(slice(None), id="all", marks=pytest.mark.slow)])
def test_a_drag_to_a_face_changes_more_than_another_seed(chromium, tmp_path, some):
    people = [name for name in zoo_list(zoo_folder("zoo")) if name.startswith(("man", "woman"))][some]
    with site(["zoo"], port=free_port(), out=tmp_path, faces=0, patience=0.) as address, window(chromium, 1280, 800) as page:
        page.goto(address)
        page.wait_for_selector(".sas-screen canvas")
        view(page, "Maps")
        page.wait_for_selector(f".sas-pad [data-name='{people[-1]}']")
        dance, seed, shots = people[0], page.get_by_label("Seed"), {}
        for name in [*people[1:], people[0]]:
            drag_to(page, name)
            page.wait_for_timeout(100)
            shots[name] = preview(page, 0)
            before = shown(page)
            seed.fill("1"); seed.press("Enter")
            other = preview(page, before)
            before = shown(page)
            seed.fill("0"); seed.press("Enter")
            last = preview(page, before)
            assert np.array_equal(last, shots[name]) and f"look='{name}', dance='{dance}', look_by=(0.0, 0.0)" in page.locator(".sas-code pre").text_content()
            shots[name, "seed"] = other
        for one, name in zip([people[0], *people[1:]], [*people[1:], people[0]]):
            for where in (slice(None), HEAD):
                by = lambda x: np.abs(x[where] - shots[name][where]).mean()
                assert by(shots[one]) > 1.2*by(shots[name, "seed"]) > 0, (one, name)
        assert not page.errors


def test_two_pages_at_once_and_a_reload(served, chromium, page):
    with window(chromium) as other:
        other.goto(served[0])
        other.wait_for_selector(".sas-screen video")
        other.get_by_role("slider", name=re.compile("dance: how strong")).fill("0.5")
        other.wait_for_function("document.querySelector('.sas-code pre').textContent.includes('motion=0.5')")
        assert "motion=0.5" not in page.locator(".sas-code pre").text_content()
        other.reload()
        other.wait_for_selector(".sas-screen video")
        assert not other.errors and not page.errors


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
def of_another_base(tmp_path_factory):
    "A page over a concept of a wide, random base that knows any word, whose full videos nobody waits for."
    import torch, wan_folder
    from sas_nb.clip import Clip
    from sas_nb.learning import learn
    home = tmp_path_factory.mktemp("another")
    base = wan_folder.write(home/"base")
    (base/"sas_nb.json").write_text(json.dumps(dict(steps=6, fps=8., num_frames=9, height=48, width=80)))
    learn(Clip(torch.rand(9, 3, 48, 80), 8.), ("a [v] ball on a beach", "it is [u] rolling"), str(base), FEW, Run(home/"ball", progress=False))
    with site([home/"ball"], port=free_port(), out=home/"out", steps=6, preview=2, patience=0.) as address: yield address


def test_a_page_over_another_base(of_another_base, chromium, shots):
    with window(chromium, 1280, 800) as page:
        page.goto(of_another_base)
        page.wait_for_selector(".sas-screen canvas")  # the preview
        page.wait_for_function("document.querySelector('.sas-screen [role=status]').textContent.startsWith('preview')")
        full = page.get_by_role("button", name=re.compile("^Full video, about "))
        page.wait_for_selector(".sas-view-faces .sas-strip[data-frames]")
        page.screenshot(path=shots/"another-preview.png", full_page=True)
        full.wait_for()
        assert not page.locator(".sas-screen video").count()
        full.click()
        page.wait_for_selector(".sas-screen video")
        film = page.locator(".sas-screen video").bounding_box()
        assert film["width"]/film["height"] == pytest.approx(80/48, rel=.02)
        page.wait_for_function("document.querySelector('.sas-screen [role=status]').textContent.startsWith('full video')")
        full.wait_for(state="hidden")
        before = shown(page)
        page.get_by_label("Prompt").fill("a [v] zebra ball wearing a sombrero on the moon. it is [u] rolling")
        page.wait_for_function("n => +document.querySelector('.sas-screen').dataset.shown > n", arg=before)  # a preview again
        full.wait_for()  # the button and the words come a moment after the picture
        assert not page.locator(".sas-words mark").count()
        page.get_by_text("Help", exact=True).click()
        assert page.get_by_text("of 9 frames of 48x80 by").is_visible()
        page.screenshot(path=shots/"another-help.png", full_page=True)
        assert not page.errors


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


def run_first_cell(page):
    "A press is lost while JupyterLab still moves the focus, so it is pressed until the cell has begun."
    from playwright.sync_api import TimeoutError
    begun = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]")).first
    for _ in range(5):
        page.locator(".jp-Cell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        try: return begun.wait_for(timeout=10_000)
        except TimeoutError: continue
    raise AssertionError("the cell did not begin")


def test_in_jupyterlab(lab, chromium, shots):
    with window(chromium) as page:
        page.goto(lab)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")
        run_first_cell(page)
        page.wait_for_selector(".sas-screen video")
        view(page, "Maps")
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
        assert "Starting" in server.stdout.readline()
        line = server.stdout.readline()
        assert f"http://127.0.0.1:{port}/?token=" in line, line  # before anything is loaded: the page says itself what it does
        assert "by tiny need less than" in server.stdout.readline()
        assert "first video is there" in server.stdout.readline()
        assert "/login" in urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).url
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally: server.kill()
    with pytest.raises(OSError): socket.create_connection(("127.0.0.1", port), 5)
