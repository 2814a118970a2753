"What is seen between the command and the page: the shape at once, words of what is done, and nothing that jumps."
import json, re, time
import pytest
from sas_nb.atlas.places import load_zoo
from sas_nb.explore.layout import Pane, saying
from sas_nb.explore.opening import shape_of_page, title_of
from sas_nb.explore.page import Explorer
from sas_nb.explore.serve import _await_page, _template, opening_page, site
from sas_nb.files import UserError
from test_browser import chromium, free_port, MISSING, shots, window # noqa: F401 (fixtures)

SMALL = dict(steps=2, preview=1, guidance=1, num_frames=5)
PAIR = ["zoo/woman-00", "zoo/man-02"]
in_chromium = pytest.mark.skipif(bool(MISSING), reason=f"a browser test needs {', '.join(MISSING)}")


def wait_for(what, seconds=60):
    "Until it is so, by the page's own thread."
    until = time.time() + seconds
    while not what() and time.time() < until: time.sleep(.05)
    return what()


def test_the_shape_needs_no_model(tmp_path):
    import subprocess, sys
    code = "import sys; from sas_nb.explore.serve import _template; _template('a'); print({'torch', 'ipywidgets', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("scene, title", [(False, "Whose look, whose dance?"), (True, "Who dances where?")])
def test_the_shape_has_the_pages_title_and_says_what_is_done(scene, title):
    assert title_of(scene) == title
    shape = shape_of_page(title, "Loading <b>")
    assert f"<h1>{title}</h1>" in shape and "Loading &lt;b&gt;" in shape and "sas-turns" in shape and shape in _template(title).replace("Opening the page", "Loading &lt;b&gt;")


def test_loading_pytorch_is_said_before_it_is_loaded():
    import subprocess, sys
    code = "import sys; from sas_nb.explore.page import Explorer; from sas_nb.explore.stage import SceneExplorer; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_pane_shows_its_words_until_the_page_comes(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(Pane, "say", lambda self, words: told.append(words))
    pane = opening_page(PAIR, str(tmp_path), faces=0, out=str(tmp_path/"out"), **SMALL)
    assert pane.children == (pane.opening,) and pane.opening.words == "Opening the page"  # at once
    assert wait_for(lambda: len(pane.children) == 2) and "sas-explorer" in pane.children[1]._dom_classes
    assert told == ["Loading PyTorch", "Reading the concepts and drawing their maps"]
    assert wait_for((tmp_path/"quiet").exists) and json.loads((tmp_path/"ready").read_text())["note"]


def test_why_there_is_no_page_takes_the_signs_place(tmp_path):
    pane = opening_page([str(tmp_path/"nowhere")], str(tmp_path), faces=0)
    assert wait_for(lambda: pane.opening not in pane.children)
    assert "nowhere" in pane.children[0].value and 'role="alert"' in pane.children[0].value


@pytest.mark.parametrize("debug, says", [("0", "Something went wrong that should not have (RuntimeError: out of paint)"), ("1", "Traceback")])
def test_a_mistake_of_ours_takes_the_signs_place_and_reaches_the_command(tmp_path, monkeypatch, debug, says):
    def fails(*args, **kwargs): raise RuntimeError("out of paint")
    monkeypatch.setattr("sas_nb.explore.page.Explorer", fails)
    monkeypatch.setenv("SAS_NB_DEBUG", debug)
    pane = opening_page(PAIR, str(tmp_path), faces=0)
    assert wait_for(lambda: pane.opening not in pane.children, 20)
    assert says in pane.children[0].value and 'role="alert"' in pane.children[0].value
    with pytest.raises(UserError) as told: _await_page(None, tmp_path, 0.)
    assert says in str(told.value)


def test_one_in_store_loads_nothing_until_the_first_is_quiet_or_somebody_looks(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("sas_nb.explore.serve.explorer_page", lambda *args, **kwargs: made.append(1) or type("", (), dict(data="none")))
    (tmp_path/"begun").touch()
    store = [opening_page(PAIR, str(tmp_path)) for _ in range(2)]
    time.sleep(.5)
    assert not made
    store[0].opening._handle_custom_msg(dict(drawn=True), [])
    assert wait_for(lambda: made) and len(made) == 1
    (tmp_path/"quiet").touch()
    assert wait_for(lambda: len(made) == 2)


def test_a_notebooks_cell_says_what_is_done_and_takes_it_back(monkeypatch):
    seen = []
    class Handle:
        def update(self, what): seen.append(what.data)
    monkeypatch.setattr("IPython.get_ipython", lambda: type("", (), dict(kernel=1)))
    monkeypatch.setattr("IPython.display.display", lambda what, display_id: Handle())
    with pytest.raises(KeyError), saying() as say:
        say("Reading <it>")
        raise KeyError
    assert "Reading &lt;it&gt; ..." in seen[0] and "sas-turns" in seen[0] and seen[1] == ""
    with saying(told := []): pass  # whoever is told otherwise sees nothing here
    assert len(seen) == 2 and told == []


def test_an_explorer_over_a_studio_says_nothing_and_stands_in_a_pane(tmp_path):
    from sas_nb.explore.renderer import Studio
    told = []
    e = Explorer(Studio(load_zoo("zoo", ["woman-00", "man-02"]), **SMALL), out=tmp_path, faces=0, tell=told.append)
    assert e.pane.children == (e.pane.opening, e.view) and e.pane.opening.page == shape_of_page(e.head.title)
    assert e.worker.wait() and not e.screen.busy
    e.close(); e.worker.wait()


SHIFTS = """globalThis.shifts = []
new PerformanceObserver(list => shifts.push(...list.getEntries().map(e => e.value))).observe({ type: "layout-shift", buffered: true })"""


@pytest.mark.browser
@in_chromium
@pytest.mark.parametrize("size, scene", [((1280, 800), False), ((390, 844), False), ((1280, 800), True)])
def test_opening_shows_at_once_what_is_done_and_moves_nothing(chromium, shots, tmp_path, monkeypatch, size, scene):
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/"cache"))
    with window(chromium, *size) as page:
        page.add_init_script(SHIFTS)
        seen = {}
        def begun(address):
            page.goto(address, wait_until="commit")
            page.wait_for_selector(".sas-opening h1")
            seen.update(title=page.locator("h1").first.inner_text(), words=page.locator("[role=status]").first.inner_text())
            page.screenshot(path=shots/f"opening-{size[0]}-{scene}.png")
        with site(PAIR, port=free_port(), out=tmp_path/"out", begun=begun, scene=scene, steps=2, preview=1):
            assert seen == dict(title=title_of(scene), words="Opening the page") or re.match("Loading|Reading", seen["words"])
            page.wait_for_selector(".sas-screen video")
            page.wait_for_function("document.querySelectorAll('.sas-strip[data-frames]').length >= 2")
            if not scene:
                page.get_by_role("button", name="Maps").click()
                page.wait_for_function("document.querySelectorAll('.sas-pad image').length >= 4")
            page.screenshot(path=shots/f"opened-{size[0]}-{scene}.png")
            assert not page.locator(".sas-opening").first.is_visible() and not page.locator(".sas-stage .sas-turns").count()
            assert sum(page.evaluate("shifts")) < .02 and not page.errors
