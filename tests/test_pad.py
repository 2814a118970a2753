"The map in a real Chromium: grab, click, drag, touch, names that cover nothing."
import importlib.util, os, shutil
from pathlib import Path
import numpy as np
import pytest
from sas_nb.atlas.layout import laid_out
from sas_nb.explore import widgets

STATIC = Path(widgets.__file__).parent / "static"
CHROMIUM = os.environ.get("SAS_NB_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
HERE = importlib.util.find_spec("playwright") and Path(CHROMIUM).exists()
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not HERE, reason="needs playwright and chromium")]

DRAW = """async ([source, style, state, width]) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })))
  document.body.innerHTML = `<style>${style}</style>`
  const el = document.body.appendChild(document.createElement("div"))
  Object.assign(window, { state, sent: [], held: [], saved: [] })
  const heard = {}
  const set = (name, value) => { state[name] = value; heard[`change:${name}`]?.() }
  const model = {
    get: name => state[name], save_changes: () => { held.push(state.dragging); saved.push([...state.point]) }, on: (event, f) => { heard[event] = f },
    set, send: message => {
      sent.push(message)
      const mark = state.marks.find(m => m.name == message.go)
      if (mark) { set("here", mark.name); set("point", [mark.x, mark.y]) } // what the page's Python answers
    },
  }
  window.echo = set // what the page's Python says
  await module.default.render({ model, el })
}"""
NAMES = """() => {
  const boxes = [...document.querySelectorAll(".names text")].map(e => e.getBoundingClientRect())
  const marks = [...document.querySelectorAll(".mark")].map(e => e.getBoundingClientRect())
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1
  const count = (xs, ys) => xs.reduce((n, a) => n + ys.filter(b => a != b && meet(a, b)).length, 0)
  return [boxes.length, count(boxes, boxes), count(boxes, marks), count(marks, marks)]
}"""
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP8AAP///yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="


def marks_of(n, group="people", image=PIXEL):
    X = np.random.default_rng(n).normal(size=(n, 40))
    points, _ = laid_out(X @ X.T)
    return [dict(name=f"{group}-{i:02d}", x=float(x), y=float(y), group=group) | (dict(image=image) if image else {})
            for i, (x, y) in enumerate(points)]


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright
    from test_browser import in_turn
    in_turn()
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--no-first-run"])
        try: yield browser
        finally: browser.close()


@pytest.fixture
def draw(chromium):
    context = chromium.new_context(viewport=dict(width=390, height=500), has_touch=True)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    def draw(marks, **state):
        first = marks[0]
        state = dict(marks=marks, here=first["name"], point=[first["x"], first["y"]], span=1., step=.025, words="who is here",
                     label="map of looks", dragging=False) | state
        page.evaluate(DRAW, [(STATIC/"pad.js").read_text(), (STATIC/"pad.css").read_text(), state, 300])
        return page
    yield draw
    context.close()
    assert not errors


def middle(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"]/2, box["y"] + box["height"]/2


def drag(page, start, by, steps=5):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0]+by[0], start[1]+by[1], steps=steps)
    page.mouse.up()


def test_the_point_is_grabbed_by_its_middle_though_it_stands_on_a_mark(draw):
    page = draw(marks_of(64))
    (x, y), before = middle(page.locator(".point")), page.evaluate("state.point")
    side = page.locator(".board").bounding_box()["width"]/2.04
    drag(page, (x, y), (30, 18))
    after = page.evaluate("state.point")
    assert after == pytest.approx([before[0]+30/side, before[1]-18/side], abs=.01)
    assert page.evaluate("sent.filter(m => m.go)") == [] and page.evaluate("[held.includes(true), held.at(-1)]") == [True, False]


def test_a_click_on_a_mark_goes_there_and_a_press_that_moves_drags(draw):
    page = draw(marks_of(64))
    mark = page.locator(".mark").nth(20)
    name = mark.get_attribute("data-name")
    page.mouse.click(*middle(mark))
    assert page.evaluate("[sent.at(-1), state.here]") == [dict(go=name), name]
    count, other = page.evaluate("sent.length"), middle(page.locator(".mark").nth(5))
    inwards = [20 if x < c else -20 for x, c in zip(other, middle(page.locator(".board")))]
    drag(page, other, inwards)
    assert page.evaluate("sent.length") == count
    assert middle(page.locator(".point")) == pytest.approx((other[0]+inwards[0], other[1]+inwards[1]), abs=1)
    page.mouse.click(*middle(mark)) # the point lies elsewhere now; and once more with the point upon it
    page.mouse.click(*middle(mark))
    assert page.evaluate("state.here") == name and not page.evaluate("state.dragging")


@pytest.mark.parametrize("waits", [0, 300])
def test_a_quick_hand_keeps_the_point_though_python_answers_of_an_older_place(draw, waits):
    page = draw(marks_of(64))
    x, y = middle(page.locator(".point"))
    to = x + (60 if x < 195 else -60), y
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate("""([x, y, u]) => {
      const move = x => document.querySelector(".board").dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y, pointerId: 1, bubbles: true }))
      for (const k of [1, 2, 3]) move(x + k*(u - x)/3) // in no time
      globalThis.first = saved.at(-1)
      echo("point", first)
    }""", [x, y, to[0]])
    assert middle(page.locator(".point")) == pytest.approx(to, abs=1.5)
    page.wait_for_timeout(waits)
    assert not waits or page.evaluate("saved.at(-1)") != page.evaluate("first"), "the last place is sent though the hand rests"
    page.evaluate("echo('point', first)")
    page.mouse.up()
    assert middle(page.locator(".point")) == pytest.approx(to, abs=1.5)
    last, now = page.evaluate("[saved.at(-1), state.point]")
    assert last == now and abs(now[0] - page.evaluate("first")[0]) > .1 and not page.evaluate("state.dragging")


def test_a_click_between_marks_puts_the_point_there(draw):
    page = draw(marks_of(3))
    box = page.locator(".board").bounding_box()
    at = box["x"]+.5*box["width"], box["y"]+.93*box["height"]
    page.mouse.click(*at)
    assert middle(page.locator(".point")) == pytest.approx(at, abs=1.5) and page.evaluate("sent.filter(m => m.go)") == []


@pytest.mark.parametrize("n", [2, 5, 12, 30, 64, 72])
def test_names_cover_neither_names_nor_faces(draw, n):
    shown, *covered = draw(marks_of(n)).evaluate(NAMES)
    assert covered == [0, 0, 0] and (n > 12 or shown)


def test_a_name_shows_where_one_points(draw):
    page = draw(marks_of(64))
    mark = page.locator(".mark").nth(30)
    page.mouse.move(*middle(mark))
    assert page.locator(".tip").text_content() == mark.get_attribute("data-name")


def test_each_group_has_a_map_and_few_tab_stops(draw):
    page = draw([*marks_of(64), *marks_of(8, "things")])
    stops = "document.querySelectorAll('[tabindex=\"0\"], button').length"
    assert page.locator(".mark").count() == 64 and page.evaluate(stops) == 4
    page.get_by_role("button", name="things", exact=True).click()
    assert page.locator(".mark").count() == 8 and page.evaluate("state.here") == "things-00"
    page.locator(".mark.here").focus()
    page.keyboard.press("ArrowRight"), page.keyboard.press("ArrowLeft"), page.keyboard.press("ArrowDown")
    name = page.evaluate("document.activeElement.dataset.name")
    page.keyboard.press("Enter")
    assert page.evaluate("state.here") == name


def test_two_are_a_line_and_one_is_no_map(draw):
    page = draw([dict(name="ann", x=-.8, y=0, group="people"), dict(name="bob", x=.8, y=0, group="people")])
    box = page.locator(".board").bounding_box()
    assert box["height"] < .4*box["width"]
    drag(page, middle(page.locator(".point")), (60, 15))
    assert page.evaluate("state.point")[0] > -.6 and page.evaluate("state.point")[1] == 0
    page = draw([dict(name="ann", x=0, y=0, group="people")])
    assert not page.locator(".board").is_visible() and page.locator(".alone").inner_text() == "Only ann is on this map, so there is nothing to drag between. A second one makes this a map."


def test_a_finger_drags_the_point_and_scrolls_elsewhere(draw):
    page = draw(marks_of(64))
    page.evaluate("document.body.style.height = '3000px'")
    touch = page.context.new_cdp_session(page)
    def swipe(x, y, dx, dy):
        touch.send("Input.dispatchTouchEvent", dict(type="touchStart", touchPoints=[dict(x=x, y=y)]))
        for k in range(1, 11):
            touch.send("Input.dispatchTouchEvent", dict(type="touchMove", touchPoints=[dict(x=x+dx*k/10, y=y+dy*k/10)]))
            page.wait_for_timeout(16)
        touch.send("Input.dispatchTouchEvent", dict(type="touchEnd", touchPoints=[]))
    before = page.evaluate("state.point")
    swipe(*middle(page.locator(".point")), 40, 40)
    moved = page.evaluate("state.point")
    assert moved != before and page.evaluate("[scrollY, sent.filter(m => m.go).length]") == [0, 0]
    x, y = middle(page.locator(".mark").nth(50))
    swipe(x, y, 0, -150)
    page.wait_for_function("scrollY > 50")
    assert page.evaluate("[state.point, sent.filter(m => m.go).length]") == [moved, 0]
    page.evaluate("scrollTo(0, 0)")
    page.touchscreen.tap(*middle(page.locator(".mark").nth(30)))
    page.wait_for_function("sent.some(m => m.go)")
