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
WIDGETS = {w.__name__.lower(): w for w in (widgets.Pad, widgets.Strength, widgets.Screen, widgets.Code)}
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
    assert {f.name for f in FILES} == {f"{w}.{end}" for w in WIDGETS for end in ("js", "css")} | {"page.css"}
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
    plain = (str, int, float, list)
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
        assert {h.removeprefix("change:") for h in ran["heard"]} <= set(traits) and ran["heard"]

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

    def test_the_slider(self, page):
        ran = drawn(page, "strength", value=1.25, label="motion")
        assert "motion: 1.25" in ran["text"]
        assert [s["dragging"] for s in ran["saved"]] == [False, True, False]

    @pytest.mark.parametrize("file", STYLES, ids=name)
    def test_every_style_means_something(self, page, file):
        text = re.sub(r"/\*.*?\*/", "", file.read_text(), flags=re.S)
        rules = re.findall(r"([^{}]+)\{([^{}]*)\}", text)
        assert rules and not re.sub(r"[^{}]+\{[^{}]*\}", "", text).strip()
        pairs = [d.partition(":")[::2] for _, body in rules for d in body.split(";") if d.strip()]
        selectors = [s.strip() for selector, _ in rules for s in selector.split(",")]
        unknown = page.evaluate(MEANS_NOTHING, [selectors, [[p.strip(), v.strip()] for p, v in pairs]])
        assert not unknown
