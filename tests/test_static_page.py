"""The explorer as a page without a kernel, from three people of the zoo: its rules are those of Python, and in a real Chromium
a drag changes the picture, nothing fails, and nothing is asked of anybody else. With --slow the model runs there too."""
import functools, http.server, importlib.util, json, re, shutil, threading
from dataclasses import replace
import numpy as np
import pytest
import static_page
from in_browser import few_bits
from sas_nb.explore import Position
from sas_nb.edits import edits_of, without_new
from sas_nb.explore.sliders import Studio
from sas_nb.files import UserError
from sas_nb.explore.maps import PARTS, percents
from sas_nb.explore.mixtures import apart
from sas_nb.explore.words import carried, chips_of, fitting, toggled
from sas_nb.prompt import Prompt, unknown_words
from test_browser import chromium, MISSING, serious, TAB_STOPS, view, window  # noqa: F401 (a fixture)

ODD = ["A woman, in the the snow.", "in the snow the. A woman!", "a woman's t-shirt , 3.5 mm (old)", "一个男人在公园跳舞", "一个男人在雪地跳舞。", "पार्क में", ""]
NAMES = ["woman-28", "man-21", "woman-07"]
NO_MODEL = [*MISSING, *([] if shutil.which("npm") else ["npm (which fetches the runtime)"]), *([] if importlib.util.find_spec("onnxscript") else ["Python package onnxscript (pip install onnxscript)"])]


def built(folder, *more):
    concepts = [f"zoo/{n}" for n in NAMES]
    static_page.main(concepts, folder/"page", folder/"site"/"explore", ",".join(NAMES), 2, *more)
    return folder/"page"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, own_cache): return built(tmp_path_factory.mktemp("built"), False)


@pytest.fixture(scope="module")
def studio(own_cache): return Studio([f"zoo/{n}" for n in NAMES])


@pytest.fixture(scope="module")
def address(folder):
    with http_of(folder) as url: yield url


class http_of:
    "A plain host of files."
    def __init__(self, folder): self.folder = folder
    def __enter__(self):
        handler = functools.partial(Quiet, directory=self.folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"
    def __exit__(self, *_): self.server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


def opened(page, address):
    page.goto(address)
    page.wait_for_selector(".sas-screen .sas-strip")
    page.wait_for_function("globalThis.sasPage")


@pytest.fixture(scope="module")
def page(address, chromium):
    with window(chromium, 1280, 800) as page:
        opened(page, address)
        yield page


def test_files_and_size(folder):
    about = json.loads((folder/"about.json").read_text())
    assert set(about["clips"]) == {f"{a}|{b}" for a in NAMES for b in NAMES}
    assert all((folder/"clips"/f).stat().st_size for f in [*about["clips"].values(), *about["faces"].values()])
    assert (folder.parent/"site"/"explore"/"index.html").read_text() == (folder/"index.html").read_text()
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 2.5e6


def test_few_bits_are_near():
    rows = np.random.default_rng(0).normal(size=(5, 400)).astype(np.float32)*np.array([[.01], [1], [3], [100], [0]], np.float32)
    steps, numbers = few_bits(rows, 1/8)
    assert np.abs(numbers*steps[:, None] - rows).max(1) == pytest.approx(steps/2, rel=.05, abs=1e-11)
    rows[1, 7] = 1e4  # one large number makes its row coarser, and overflows nothing
    steps, numbers = few_bits(rows, 1/8)
    assert numbers[1, 7]*steps[1] == pytest.approx(1e4, rel=1e-3)


def test_docs_and_page_do_not_destroy_each_other(folder, tmp_path):
    import docs
    (tmp_path/"without").mkdir(); (tmp_path/"with").mkdir()
    docs.write_try(tmp_path/"nothing", tmp_path/"without")
    docs.write_try(folder, tmp_path/"with")
    assert "make site" in (tmp_path/"without"/"try.md").read_text() and not (tmp_path/"without"/"explore").exists()
    assert "<iframe" in (tmp_path/"with"/"try.md").read_text() and (tmp_path/"with"/"explore"/"about.json").exists()
    other = folder.parent/"site"/"index.html"
    other.write_text("docs")
    static_page.replace_folder(shutil.copytree(folder, folder.parent/"site"/"explore.new"), folder.parent/"site"/"explore")
    assert other.read_text() == "docs" and (folder.parent/"site"/"explore"/"about.json").exists()


def test_a_folder_of_somebody_elses_stays(tmp_path, folder):
    (tmp_path/"mine").mkdir()
    (tmp_path/"mine"/"thesis.txt").write_text("years")
    with pytest.raises(UserError, match="holds other files"): built_into(tmp_path/"mine")
    with pytest.raises(UserError, match="holds other files"): static_page.replace_folder(folder, tmp_path/"mine")
    assert (tmp_path/"mine"/"thesis.txt").read_text() == "years" and (folder/"about.json").exists()


def built_into(out): static_page.main([f"zoo/{n}" for n in NAMES], out, out, ",".join(NAMES), 2, False)


def in_js(p, names=("look", "dance")):
    "A position as the page has it."
    parts = {part: dict(start=p.of(part)[0], by=list(p.of(part)[1])) for part in ("appearance", "motion")}
    return dict(parts, strength=dict(appearance=p.appearance, motion=p.motion), prompt=p.prompt, seed=p.seed)


PLACED = """(all) => all.map(p => {
  const { places } = sasPage
  for (const part of ["appearance", "motion"]) {
    const [x, y] = places.map(part).places[p[part].start]
    p[part].point = places.snap(part, [x + p[part].by[0], y + p[part].by[1]])
    p[part].along = []
  }
  const weights = ["appearance", "motion"].map(part => places.weights(part, p[part]))
  return [weights, places.ownPrompt(p), places.apart(p)]
})"""


@pytest.mark.browser
@pytest.mark.skipif(bool(MISSING), reason="needs chromium")
def test_places_are_those_of_python(page, studio):
    rng = np.random.default_rng(0)
    by = lambda: tuple(float(x) for x in rng.uniform(-1.2, 1.2, 2))
    some = [Position(a, b) for a in NAMES for b in NAMES]
    some += [Position(NAMES[i % 3], NAMES[i % 2], by(), by() if i % 2 else (0., 0.)) for i in range(20)]
    some = [studio.snap(p) for p in some]
    for p, (weights, prompt, far) in zip(some, page.evaluate(PLACED, [in_js(p) for p in some])):
        assert np.allclose(weights, [studio.weights(p, part) for part in ("appearance", "motion")], atol=1e-6), p
        assert prompt == studio.own_prompt(p)
        assert abs(far - apart(*(studio.maps[part].shares(p) for part in PARTS))) < 1e-6


@pytest.mark.browser
@pytest.mark.skipif(bool(MISSING), reason="needs chromium")
def test_words_are_those_of_python(page, studio):
    chips = chips_of(studio.dit)
    own, new = "a [v] woman in a park. she is [u] dancing", "a [v] man in a park. he is [u] dancing"
    phrases = [p for of in chips.values() for p in of]
    texts = [own, toggled(own, "at night", chips), toggled(toggled(own, "in the snow", chips), "at sunset", chips), "a fish", "a [v] woman"]
    asked = [[t, p] for t in texts for p in phrases]
    js = """async ([asked, texts, own, now, chips, vocabulary]) => {
      const w = await import("./words.js")
      return [asked.map(([t, p]) => w.toggled(t, p, chips, own)), texts.map(t => w.carried(t, own, now, chips)),
              texts.map(t => w.unknownWords(t, vocabulary).map(u => u.word)), texts.map(t => w.numbered(t, vocabulary))]
    }"""
    sea, hat = "a [v] ocean waves at sea. it is [u] rolling", toggled(toggled(own, "in the snow", chips), "wearing a cap", chips)
    fit, gone, back, shares = page.evaluate("""async ([own, sea, hat, chips]) => {
      const [w, { percents }] = await Promise.all([import("./words.js"), import("./places.js")])
      const { kinds } = sasPage.about
      const gone = w.carried(hat, own, sea, chips, kinds)
      return [[own, sea].map(x => w.fitting(chips, x, kinds)), gone, w.carried(gone, sea, own, chips, kinds),
              percents([["a", .125], ["b", .125], ["c", .125], ["d", .625]].sort((x, y) => y[1] - x[1]))]
    }""", [own, sea, hat, chips])
    assert fit == [fitting(chips, x) for x in (own, sea)] and gone == carried(hat, own, sea, chips) and back == carried(gone, sea, own, chips)
    assert dict(shares) == percents(dict(d=.625, a=.125, b=.125, c=.125))
    about = page.evaluate("sasPage.about.vocabulary")
    flipped, moved, unknown, numbers = page.evaluate(js, [asked, texts, own, new, chips, about])
    assert flipped == [toggled(t, p, chips, own) for t, p in asked]
    assert moved == [carried(t, own, new, chips) for t in texts]
    assert unknown == [[u["word"] for u in unknown_words(t, studio.dit.tokenizer, [])] for t in texts] and unknown[3] == ["fish"]
    plain = [re.sub(r"\s*\[[uv]\]", "", t) for t in texts]
    pairs = [[a, b] for a in [*plain, *ODD] for b in [*plain, *ODD]]
    known = page.evaluate("async pairs => { const w = await import('./words.js'); return pairs.map(p => w.withoutNew(...p)) }", pairs)
    assert known == [without_new(a, b) for a, b in pairs]
    hints = page.evaluate("async ([texts, own]) => { const w = await import('./words.js'); return [...texts.map(t => w.advice(t, own, { v: 1, u: 1 })), w.advice('a [v] woman', own, { v: 1, u: 0 }), w.advice('a [u] woman. she is [v] dancing', own, { v: 1, u: 1 })] }", [texts, own])
    assert hints[:3] == [""]*3 and "[v] (the new word for who it is) and no [u]" in hints[3] and "as the base model" in hints[4] and hints[5] == "" and "the wrong way round" in hints[6]
    edits = page.evaluate("async ([texts, own]) => { const w = await import('./words.js'); return texts.map(t => w.edited(own, t, sasPage.about.vocabulary)) }", [[own, own + "!", "zebras", texts[2]], own])
    assert edits[:3] == [None]*3 and edits[3]["asked"] != edits[3]["known"]
    assert [*edits_of(Prompt(own), [Prompt(t) for t in (own, own + "!", "zebras", texts[2])])] == [3]
    assert numbers == [None if u else studio.dit.tokenizer(t).input_ids for t, u in zip(plain, unknown)]


def picture(page): return page.locator(".sas-stage").screenshot()


@pytest.mark.browser
@pytest.mark.skipif(bool(MISSING), reason="needs chromium")
@pytest.mark.parametrize("name, size, options", [("desk", (1280, 800), {}), ("dark", (1280, 800), dict(color_scheme="dark")), ("phone", (390, 844), dict(has_touch=True, is_mobile=True))])
def test_drag_and_every_screen(address, chromium, name, size, options):
    with window(chromium, *size, **options) as page:
        strangers = []
        page.on("request", lambda r: None if re.match(rf"{address}|blob:|data:", r.url) else strangers.append(r.url))
        opened(page, address)
        page.get_by_role("button", name="Pause all clips").click()
        assert len(page.locator(".sas-examples button").all()) == 1  # of the three, what was made beforehand
        page.wait_for_function("document.querySelectorAll('.sas-view-faces .sas-strip[data-frames]').length == 3")
        for v in ("Faces", "Maps", "dance", "A to B"):
            view(page, v)
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0], v
            if v in ("Faces", "Maps"): assert not serious(page), v
        view(page, "dance")
        page.wait_for_function("document.querySelectorAll('.sas-view-table .sas-strip[data-frames]').length == 9")
        view(page, "Maps")
        board = page.locator(".sas-pad .board").first
        board.scroll_into_view_if_needed()
        before = picture(page)
        spot = lambda n: page.locator(f".sas-pad [data-name='{n}']").first.bounding_box()
        middle = lambda b: (b["x"] + b["width"]/2, b["y"] + b["height"]/2)
        if name == "phone":
            page.locator(f".sas-pad [data-name='{NAMES[1]}']").first.tap()
        else:
            start, to = middle(spot(NAMES[0])), middle(spot(NAMES[1]))  # before the drag, in which marks are drawn anew
            page.mouse.move(*start); page.mouse.down()
            for k in range(1, 6): page.mouse.move(*(a + (b - a)*k/5 for a, b in zip(start, to)))
            page.mouse.up()
        page.wait_for_function("n => document.querySelector('.sas-screen [role=status]').textContent.includes(`look of ${n}`)", arg=NAMES[1])
        assert picture(page) != before
        point = page.locator(".sas-pad .point").first
        point.focus()
        page.keyboard.press("Home")
        inwards = "ArrowLeft" if float(point.get_attribute("aria-valuenow")) > 0 else "ArrowRight"
        for _ in range(8): page.keyboard.press(inwards)
        page.wait_for_function("/nearest clip made beforehand/.test(document.querySelector('.sas-screen [role=status]').textContent)")
        assert page.evaluate(f"{TAB_STOPS}.length") < 90
        assert not page.errors and not strangers, (page.errors, strangers)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(bool(NO_MODEL), reason=f"the model in a browser needs {', '.join(NO_MODEL)}")
def test_the_model_in_the_browser_makes_what_python_makes(tmp_path, studio, chromium):
    with http_of(built(tmp_path, True)) as address, window(chromium, 1280, 800) as page:
        opened(page, address)
        page.evaluate("void sasPage.engine.start()")
        page.wait_for_function("sasPage.engine.ready || sasPage.engine.failed")  # an evaluation has no time limit, this has
        assert page.evaluate("sasPage.engine.ready"), page.evaluate("sasPage.engine.failed")
        js = PLACED.replace("return [weights, places.ownPrompt(p), places.apart(p)]", "return sasPage.request(p, 4)")
        between = studio.snap(Position(NAMES[0], NAMES[1], (.1, .2), appearance=.8))
        snow = replace(between, prompt=studio.own_prompt(between).replace("in a park", "wearing a top hat in the snow"))
        asked = page.evaluate(js, [in_js(p) | dict(prompt=p.prompt) for p in (between, snow)])
        assert asked[0]["edit"] is None and asked[1]["edit"]
        for p, request in zip((between, studio.snap(snow)), asked): check_made(page, studio, p, request)
        assert not page.errors


def check_made(page, studio, p, asked):
    page.evaluate("globalThis.made = globalThis.failed = null")
    page.evaluate("asked => void sasPage.engine.make({ ...asked, raw: true }, true, () => {}).then(c => { globalThis.made = Array.from(c.raw) }, e => { globalThis.failed = String(e) })", asked)
    page.wait_for_function("globalThis.made || globalThis.failed")
    assert not page.evaluate("globalThis.failed"), page.evaluate("globalThis.failed")
    raw = page.evaluate("made")
    clip = lambda seed: studio.concept(p).generate(p.prompt or studio.own_prompt(p), seed, 4).frames.numpy()
    ours = clip(0)
    error, other = (np.square(x - ours).mean() for x in (np.reshape(raw, ours.shape), clip(1)))
    assert error < 1e-3 and error < other/4
