"""The page's scripts and styles: plain rules for their text, and a real Chromium for their syntax, where there is one.
Each script is drawn there with the state that its widget starts with: what it cannot draw is an error here, without a kernel."""
import importlib.util, os, re, shutil
from pathlib import Path
import pytest
from sas_nb.explore import widgets

STATIC = Path(widgets.__file__).parent / "static"
CHROMIUM = os.environ.get("SAS_NB_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
HERE = importlib.util.find_spec("playwright") and Path(CHROMIUM).exists()
needs_chromium = [pytest.mark.browser, pytest.mark.skipif(not HERE, reason="needs playwright and chromium")]
ALL = (widgets.Pad, widgets.Strength, widgets.Screen, widgets.Code, widgets.Clips, widgets.Clock, widgets.Words, widgets.Head, widgets.Views, widgets.Places, widgets.Opening)
WIDGETS = {w.__name__.lower(): w for w in ALL}
FILES = sorted(STATIC.iterdir())
SCRIPTS, STYLES = ([f for f in FILES if f.suffix == end] for end in (".js", ".css"))
name = lambda f: f.name


FORBIDDEN = {"over 110 characters": r"^.{111}", "a tab": r"\t", "a space at the end": r" $", "not ASCII": r"[^\x00-\x7f]",
             "does not end in one line break": r"[^\n]\Z|\n\n\Z"}
FORBIDDEN_IN_SCRIPTS = {"a module is strict already": r"[\"']use strict[\"']", "semicolons or var": r";[ \t]*$|\bvar ",
                        "imports: a widget's module stands alone": r"^import\b|\bimport\(",
                        "exports no render": r"\A(?![\s\S]*^export default \{ render \}$)"}


def faults(text, is_script):
    "What is wrong with a file's text, by plain rules."
    rules = FORBIDDEN | (FORBIDDEN_IN_SCRIPTS if is_script else {})
    return [what for what, pattern in rules.items() if re.search(pattern, text, re.M)]


def test_there_is_a_file_for_each_widget_and_no_other():
    assert {f.name for f in FILES} == {f"{w}.{end}" for w in WIDGETS for end in ("js", "css")} | {"page.css", "opening.html"}
    for key, widget in WIDGETS.items():
        for code, end in ((widget._esm, "js"), (widget._css, "css")): assert str(code) == (STATIC / f"{key}.{end}").read_text()


@pytest.mark.parametrize("file", FILES, ids=name)
def test_plain_rules(file): assert not faults(file.read_text(encoding="utf-8"), file.suffix == ".js")


SCRIPT = "function render() {}\n\nexport default { render }\n"

@pytest.mark.parametrize("text, says", [
    ("'use strict'\n" + SCRIPT, "strict already"), (SCRIPT.replace("default ", ""), "no render"),
    (" \n" + SCRIPT, "at the end"),
    (SCRIPT + "\tx\n", "a tab"), (SCRIPT + "x"*111 + "\n", "over 110"), ('import "./x.js"\n' + SCRIPT, "stands alone"),
    (SCRIPT + "go();\n", "semicolons"), (SCRIPT + "\n", "one line break"), (SCRIPT.rstrip(), "one line break"),
    ("// \u2212\n" + SCRIPT, "not ASCII")])
def test_the_rules_notice(text, says):
    assert not faults(SCRIPT, True)
    fault, = faults(text, True)
    assert says in fault


@pytest.fixture(scope="module")
def page():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--no-first-run"])
        yield browser.new_page()
        browser.close()


LOAD = """async ([source, state]) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })))
  const el = document.body.appendChild(document.createElement("div"))
  const heard = {}, sent = [], saved = []
  const model = {
    get: name => state[name],
    set: (name, value) => { state[name] = value },
    save_changes: () => saved.push({ ...state }),
    send: message => sent.push(message),
    on: (event, f) => { heard[event] = f },
  }
  await module.default.render({ model, el })
  for (const change in heard) heard[change]()
  el.querySelectorAll("input, button, .mark, .point").forEach(e => {
    for (const type of ["input", "pointerdown", "pointerup"]) e.dispatchEvent(new Event(type))
    for (const key of ["ArrowRight", "Home", "Enter"]) e.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }))
  })
  return { heard: Object.keys(heard), sent, saved, text: el.textContent }
}"""


def drawn(page, key, source=None, **state):
    "Draw a widget from its own defaults; gives what it listens to, sends, saves and says."
    plain = (str, int, float, list, dict)
    defaults = {k: v for k, v in WIDGETS[key]().get_state().items() if k[0] != "_" and isinstance(v, plain)}
    errors = []
    page.on("pageerror", note := lambda e: errors.append(str(e)))
    try: return page.evaluate(LOAD, [source or (STATIC / f"{key}.js").read_text(), defaults | state])
    finally:
        page.remove_listener("pageerror", note)
        assert not errors


@pytest.mark.parametrize("key", WIDGETS)
class TestInChromium:
    pytestmark = needs_chromium

    def test_a_script_draws_its_widget(self, page, key):
        ran = drawn(page, key)
        traits = WIDGETS[key].class_trait_names(sync=True)
        assert {h.removeprefix("change:") for h in ran["heard"]} - {"msg:custom"} <= set(traits) and ran["heard"]

    def test_a_broken_script_is_noticed(self, page, key):
        source = (STATIC / f"{key}.js").read_text()
        broken = source.replace("function render(", "function render((", 1)
        with pytest.raises(Exception, match="SyntaxError"): drawn(page, key, broken)


MEANS_NOTHING = """([selectors, pairs]) => [
  ...selectors.filter(s => !CSS.supports(`selector(${s})`)),
  ...pairs.filter(([p, v]) => !p.startsWith("--") && !CSS.supports(p, v)).map(p => p.join(": ")),
]"""


class TestWhatTheyDo:
    pytestmark = needs_chromium

    def test_the_map(self, page):
        marks = [dict(name=n, x=x, y=.5, group=g) for n, x, g in (("ann", .5, "people"), ("the average", 0, "people"), ("flag", .2, "things"))]
        ran = drawn(page, "pad", marks=marks, here="ann", words="ann 90%", point=[0, 0], span=1., step=.025)
        for words in ("ann", "ann 90%", "people", "things"): assert words in ran["text"]
        assert ran["text"].count("flag") == 0  # on a map of its own
        for message in ({"drawn": True}, {"go": "ann"}, {"go": "the average"}): assert message in ran["sent"]
        assert ran["saved"][-1]["point"] == pytest.approx([.025, 0])

    def test_a_quick_hand_keeps_its_box_though_python_answers_of_an_older_place(self, page):
        first, last, shown = page.evaluate("""async source => {
          const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })))
          const el = document.body.appendChild(document.createElement("div"))
          const state = { places: [{ name: "ann", box: [0, 0, .5, 1] }], shown: true, shape: 1, dragging: false }, heard = {}, saved = []
          const set = (name, value) => { state[name] = value; heard[`change:${name}`]?.() }
          const model = { get: name => state[name], set, send: () => {}, on: (event, f) => { heard[event] = f }, save_changes: () => saved.push(state.places[0].box) }
          await module.default.render({ model, el })
          const board = el.querySelector(".sas-board-of-places"), box = board.firstChild
          Object.assign(board.style, { width: "200px", height: "100px", position: "relative" })
          box.setPointerCapture = () => {}
          const hand = (type, x) => box.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: 5, bubbles: true }))
          hand("pointerdown", 0)
          for (const x of [10, 40, 80]) hand("pointermove", x) // in no time
          const first = saved.at(-1)
          set("places", [{ name: "ann", box: first }])
          await new Promise(done => setTimeout(done, 200))
          const last = saved.at(-1)
          set("places", [{ name: "ann", box: first }])
          hand("pointerup", 80)
          el.remove()
          return [first, last, [saved.at(-1), box.style.left]]
        }""", (STATIC/"places.js").read_text())
        assert first[0] == pytest.approx(.05) and last[0] == pytest.approx(.4), "the last place is sent though the hand rests"
        assert shown[0][0] == pytest.approx(.4) and shown[1] == "40%"

    def test_the_slider(self, page):
        ran = drawn(page, "strength", value=1.25, label="motion")
        assert "motion: 1.25" in ran["text"] and {"drawn": True} in ran["sent"]
        assert [s["dragging"] for s in ran["saved"]] == [False, True, False]

    @pytest.mark.parametrize("file", STYLES, ids=name)
    def test_every_style_means_something(self, page, file):
        text = re.sub(r"/\*.*?\*/", "", file.read_text(), flags=re.S)
        text = re.sub(r"@(?:container|media) \([^()]*\) \{((?:[^{}]*\{[^{}]*\})*)\s*\}", r"\1", text) # what holds in a narrow page
        text = re.sub(r"@keyframes [\w-]+ \{((?:[^{}]*\{[^{}]*\})*)\s*\}", lambda m: re.sub(r"[^{}]+\{", "i {", m[1]), text) # a movement's steps
        rules = re.findall(r"([^{}]+)\{([^{}]*)\}", text)
        assert rules and not re.sub(r"[^{}]+\{[^{}]*\}", "", text).strip()
        pairs = [d.partition(":")[::2] for _, body in rules for d in body.split(";") if d.strip()]
        selectors = [s.strip() for selector, _ in rules for s in re.split(r",(?![^()]*\))", selector)]
        unknown = page.evaluate(MEANS_NOTHING, [selectors, [[p.strip(), v.strip()] for p, v in pairs]])
        assert not unknown

    def test_clips(self, page):
        ran = drawn(page, "clips", cells=[dict(key="ann", label="Ann"), dict(key="bob", label="Bob")], chosen=["bob"])
        assert ran["text"] == "AnnBob" and page.locator("[data-key=bob][aria-current=true][tabindex='0']").count() and page.locator("[data-key=ann][tabindex='-1']").count()
        page.locator("[data-key=bob]").last.focus(); page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.activeElement.dataset.key") == "ann"

    def test_a_table(self, page):
        cells = [dict(key=f"{a}|{b}", label="", title=f"{a} {b}") for a in "xy" for b in "uvw"]
        drawn(page, "clips", cells=cells, names=list("uvwxy"), rows=list("xy"), columns=list("uvw"))
        table = page.locator(".sas-table").last
        assert [table.locator("select").nth(i).input_value() for i in range(5)] == ["u", "v", "w", "x", "y"]
        assert [table.locator("select").nth(i).get_attribute("aria-label") for i in (0, 3)] == ["dance 1", "look 1"]

    def test_words(self, page):
        ran = drawn(page, "words", value="a sn man", unknown=[dict(word="sn", near=["snow"])], chips=dict(Place=["in the snow", "in a park"]), chosen=["in a park"])
        words = page.locator(".sas-words").last
        assert words.locator("mark").all_inner_texts() == ["sn"] and "is unknown; near:" in ran["text"]
        assert words.locator("[aria-pressed=true]").all_inner_texts() == ["in a park"]
        words.get_by_role("button", name="snow", exact=True).click()
        assert words.get_by_label("Prompt").input_value() == "a snow man"

    def test_head_and_views(self, page):
        ran = drawn(page, "head", title="Who", sentence="What.", examples=["one"], help=["so"])
        for text in ("Who", "What.", "one", "so"): assert text in ran["text"]
        drawn(page, "views", titles=dict(faces="Faces", keep="Keep"), chosen="keep")
        assert page.locator(".sas-views").last.locator("[aria-pressed=true]").all_inner_texts() == ["Keep"]

    def test_the_clock_pauses_all(self, page):
        drawn(page, "clock")
        page.evaluate("() => { document.body.innerHTML += '<i class=sas-strip data-frames=4 data-fps=50></i>' }")
        moves = "() => document.querySelector('i.sas-strip').style.backgroundPositionX"
        page.wait_for_function("() => document.querySelector('i.sas-strip').style.backgroundPositionX == '100%'")
        drawn(page, "clock", paused=True) # another one of the same page: it tells what the page is
        page.evaluate("() => { globalThis.sasClock.paused || [...document.querySelectorAll('.sas-clock button')].pop().click() }")
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        still = page.evaluate(moves) # the frame of the moment of the pause is drawn
        page.wait_for_timeout(200)
        assert page.evaluate(moves) == still
