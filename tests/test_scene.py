"Several concepts in one scene on a page: arrangements, the widgets by their traits, and a real Chromium."
import re
from dataclasses import replace
import pytest
import torch
from sas_nb.composing import learn_together
from sas_nb.clip import Clip
from sas_nb.explore.concepts import is_scene
from sas_nb.explore.scene import SceneStudio
from sas_nb.explore.serve import explorer_page, site
from sas_nb.explore.stage import SceneExplorer
from sas_nb.files import UserError
from sas_nb.recipe import Recipe, Run
from test_browser import chromium, free_port, MISSING, serious, window  # noqa: F401 (a fixture)

SMALL = dict(steps=2, preview=1, num_frames=5, guidance=1)
PAIR = ["zoo/woman-00", "zoo/man-02"]


@pytest.fixture(scope="module")
def studio(own_cache): return SceneStudio(PAIR, **SMALL)


@pytest.fixture(scope="module")
def joint(tmp_path_factory, own_cache):
    "What `sas-nb train-together` writes, hardly trained."
    out = tmp_path_factory.mktemp("scene")/"two"
    recipe = Recipe.default().together(2).with_(both=dict(steps=1, batch=2, prior=0., composites=0.))
    pairs = [(Clip(torch.rand(5, 3, 64, 64), 12., name), (f"a [v{i}] {what} in a park", f"{who} is [u{i}] dancing"))
             for i, (name, what, who) in enumerate((("ann", "woman", "she"), ("dan", "man", "he")), 1)]
    learn_together(pairs, "tiny", recipe, Run(out, progress=False))
    return out


@pytest.fixture
def scene(studio, tmp_path):
    e = SceneExplorer(studio, out=tmp_path/"out")
    assert e.worker.wait()
    yield e
    e.close()
    e.worker.wait()


def test_who_is_where_in_words(studio):
    here = studio.start
    assert studio.describe(here) == "woman-00 on the left, man-02 on the right"
    assert studio.describe(replace(here, places=((.3, 0, .7, 1), (0, 0, .3, 1)))) == "woman-00 in the middle, man-02 on the left"
    assert studio.describe(replace(here, way="sum")) == "woman-00 and man-02"


def test_arrangements_are_snapped(studio):
    p = studio.snap(replace(studio.start, places=((.012, 0, .489, 1), (.98, .99, 1, 1)), appearance=(.98, 7.), prompt=" a "))
    assert p.places == ((0, 0, .5, 1), (.95, .95, 1, 1)) and p.appearance == (1., 2.) and p.prompt == "a" and studio.snap(p) == p
    with pytest.raises(UserError, match="choose masked, sum, merged"): studio.snap(replace(p, way="joint"))


def test_what_is_shown_is_what_compose_generates(studio):
    p = replace(studio.start, appearance=(1., .5), places=studio.start.places[::-1])
    clip = studio.ways["masked"].generate(None, 0, 2, appearance=[1., .5], motion=[1., 1.], places=list(p.places), num_frames=5, guidance=1)
    assert studio.render(p) == clip.to_mp4()
    code = studio.code(p)
    assert '"zoo/woman-00"' in code and "compose(concepts, 'masked')" in code and "'appearance': [1.0, 0.5]" in code


def test_concepts_of_different_bases_have_one_way(studio):
    (a, b) = studio.ways["sum"].concepts
    other = replace(b, weights={k: w.flip(0) if k.endswith(".A") else w for k, w in b.weights.items()})
    s = SceneStudio(dict(ann=a, bob=other), **SMALL)
    assert list(s.ways) == ["merged"] and s.start.way == "merged" and not s.has_places(s.start)


def test_one_concept_is_no_scene(studio):
    with pytest.raises(UserError, match="at least two"): SceneStudio(["zoo/woman-00"], **SMALL)


def test_each_strength_and_place_changes_the_video(scene):
    shown = [scene.screen.data]
    for change in (lambda: setattr(scene.strength[0]["appearance"], "value", .2), lambda: setattr(scene.strength[1]["motion"], "value", 2.),
                   lambda: setattr(scene.boxes, "places", [dict(b, box=[.1, .1, .8, .9]) for b in scene.boxes.places])):
        change()
        assert scene.worker.wait() and scene.screen.data not in shown
        shown.append(scene.screen.data)
    assert scene.position.appearance == (.2, 1.) and scene.position.motion == (1., 2.) and scene.screen.note.startswith("full video: woman-00 in the middle")
    scene.ways.value = "sum"
    assert not scene.boxes.shown and "there are no places" in scene.says.value and scene.worker.wait()


def test_films_of_each(scene):
    assert [f.cells[0]["label"] for f in scene.films] == ["its own clip"]*2 and all(f.strips for f in scene.films) and not scene.gaps


def test_what_cannot_be_saved_is_not_offered(scene):
    save, export = (scene.buttons[name] for name in ("save", "export"))
    assert save.disabled and export.disabled and "Only &#x27;all added up&#x27; and &#x27;one behind the other&#x27; can be saved as one concept. Copy code" in scene.saved.value
    with pytest.raises(UserError, match="cannot be saved as one"): scene.save()
    scene.ways.value = "sum"
    assert not save.disabled and not export.disabled and not scene.saved.value
    scene.name.value = "both"
    save.click(); assert "Wrote" in scene.saved.value and (scene.out/"both"/"concept.json").exists()
    export.click(); assert "Wrote" in scene.saved.value and (scene.out/"both-diffusers").is_dir()
    scene.ways.value = "masked"
    assert save.disabled and "Wrote" not in scene.saved.value
    scene.worker.wait()


def test_what_was_learned_together_opens_with_one_strength_for_all(joint, tmp_path):
    assert is_scene([joint]) and is_scene(str(joint/"concept")) and not is_scene(PAIR) and not is_scene(PAIR[:1])
    e = explorer_page([str(joint)], out=tmp_path, **SMALL)
    assert isinstance(e, SceneExplorer) and e.worker.wait() and not e.gaps
    assert len(e.strength) == 1 and not e.boxes.shown and "one strength of looks" in e.says.value
    before = e.screen.data
    e.strength[0]["motion"].value = 0.
    assert e.worker.wait() and e.screen.data != before and [s.name for s in e.studio.subjects] == ["ann", "dan"]
    e.close(); e.worker.wait()


def test_the_command_opens_a_scene(tmp_path, monkeypatch):
    from typer.testing import CliRunner
    from sas_nb import cli
    given = {}
    monkeypatch.setattr("sas_nb.explore.serve.serve", lambda concepts, browser, **kwargs: given.update(kwargs))
    assert CliRunner().invoke(cli.app, ["explore", *PAIR, "--compose"]).exit_code == 0 and given["scene"]


@pytest.fixture(scope="module")
def served(tmp_path_factory, own_cache):
    with site(PAIR, port=free_port(), out=tmp_path_factory.mktemp("out"), scene=True, steps=2, preview=1) as address: yield address


def picture(page): return page.locator(".sas-stage").screenshot()


@pytest.mark.browser
@pytest.mark.skipif(bool(MISSING), reason="needs chromium")
@pytest.mark.parametrize("name, size, options", [("desk", (1280, 800), {}), ("dark", (1280, 800), dict(color_scheme="dark")), ("phone", (390, 844), dict(has_touch=True, is_mobile=True))])
def test_a_scene_in_chromium(served, chromium, tmp_path, name, size, options):
    with window(chromium, *size, **options) as page:
        page.goto(served)
        page.wait_for_selector(".sas-screen video")
        page.get_by_role("button", name="Pause all clips").click()
        page.wait_for_function("document.querySelectorAll('.sas-subject .sas-strip[data-frames]').length == 2")
        status = "t => document.querySelector('.sas-screen [role=status]').textContent.includes(t)"
        page.wait_for_function(status, arg="full video: woman-00 on the left, man-02 on the right")
        boxes = page.locator(".sas-place")
        assert boxes.all_inner_texts() == ["woman-00", "man-02"]
        film, (one, other) = page.locator(".sas-screen video").bounding_box(), [b.bounding_box() for b in boxes.all()]
        assert one["x"] == pytest.approx(film["x"], abs=2) and other["x"] + other["width"] == pytest.approx(film["x"] + film["width"], abs=2)
        assert one["height"] == pytest.approx(film["height"], abs=2)
        before = page.locator(".sas-screen video").get_attribute("src")
        slider = page.get_by_role("slider", name=re.compile("look of woman-00"))
        slider.scroll_into_view_if_needed()
        at = slider.bounding_box()
        page.mouse.move(at["x"] + at["width"]/2, at["y"] + at["height"]/2); page.mouse.down()
        page.mouse.move(at["x"] + 2, at["y"] + at["height"]/2, steps=4)
        page.wait_for_selector(".sas-screen canvas")  # a preview while it is held
        page.mouse.up()
        page.wait_for_function("s => document.querySelector('.sas-screen video')?.src != s && document.querySelector('.sas-screen video')", arg=before)
        code = "t => document.querySelector('.sas-code pre').textContent.includes(t)"
        page.wait_for_function(code, arg="'appearance': [0.0, 1.0]")
        shown = page.locator(".sas-screen").get_attribute("data-shown")
        boxes.first.focus()
        for _ in range(6): page.keyboard.press("ArrowRight")
        page.wait_for_function(code, arg="(0.3, 0.0, 0.8, 1.0)")
        page.wait_for_function("n => document.querySelector('.sas-screen').dataset.shown > n", arg=shown)
        page.wait_for_function(status, arg="full video: woman-00 in the middle")
        assert page.get_by_role("button", name="Save as concept").is_disabled() and page.get_by_text("can be saved as one concept").is_visible()
        page.screenshot(path=tmp_path/f"scene-{name}.png", full_page=True)
        assert page.evaluate("document.querySelector('#rendered_cells').scrollWidth") <= size[0]
        if name == "desk": assert not serious(page)
        assert not page.errors


ELSE = """() => [...document.querySelectorAll(".sas-explorer *")].filter(
  e => !e.closest(".sas-places, .sas-stage, .sas-code") && e.checkVisibility()).map(e => {
    const { x, y, width, height } = e.getBoundingClientRect()
    return [e.tagName, e.className, ...[x, y, width, height].map(Math.round)].join(" ")
  })"""
SHIFTS = """() => {
  globalThis.shifts = []
  new PerformanceObserver(list => shifts.push(...list.getEntries().flatMap(
    e => e.sources.map(s => s.node).filter(n => n && !(n.closest ?? n.parentElement.closest).call(n, ".sas-places")).map(n => n.className ?? n.nodeName))
  )).observe({ type: "layout-shift" })
}"""
BYTES = "async () => Array.from(new Uint8Array(await (await fetch(document.querySelector('.sas-screen video').src)).arrayBuffer()))"


def drag(page, start, by):
    "A mouse's press, way and release; the preview comes while it is held."
    page.mouse.move(*start); page.mouse.down()
    for k in range(1, 9): page.mouse.move(start[0] + by[0]*k/8, start[1] + by[1]*k/8)
    page.wait_for_selector(".sas-screen canvas")
    page.mouse.up()


@pytest.mark.browser
@pytest.mark.skipif(bool(MISSING), reason="needs chromium")
def test_a_box_is_dragged_by_its_middle_and_by_its_corner(served, chromium, tmp_path):
    with window(chromium, 1280, 800) as page:
        page.goto(served)
        page.wait_for_selector(".sas-screen video")
        page.wait_for_function("document.querySelectorAll('.sas-subject .sas-strip[data-frames]').length == 2")
        page.wait_for_function("document.querySelector('.sas-screen [role=status]').textContent.startsWith('full video: woman-00 on the left')")
        page.evaluate(SHIFTS)
        everything, films, second = page.evaluate(ELSE), [page.evaluate(BYTES)], page.locator(".sas-place").nth(1).bounding_box()
        board = page.locator(".sas-board-of-places").bounding_box()
        code = "t => document.querySelector('.sas-code pre').textContent.includes(t)"
        for by, grip, place, says in (((.3, 0), (.5, .5), "(0.3, 0.0, 0.8, 1.0)", "woman-00 in the middle"), ((-.2, -.4), (.99, .99), "(0.3, 0.0, 0.6, 0.6)", "woman-00 in the middle"),
                                      ((-2, 1), (.5, .5), "(0.0, 0.4, 0.3, 1.0)", "woman-00 on the left")):  # and no farther than the edge
            box = page.locator(".sas-place").first.bounding_box()
            drag(page, [box[a] + box[s]*g for a, s, g in (("x", "width", grip[0]), ("y", "height", grip[1]))], [board["width"]*by[0], board["height"]*by[1]])
            page.wait_for_function(code, arg=place)
            page.wait_for_function("t => document.querySelector('.sas-screen video') && document.querySelector('.sas-screen [role=status]').textContent.startsWith(`full video: ${t}`)", arg=says)
            films.append(page.evaluate(BYTES))
            assert films[-1] not in films[:-1]  # another picture
            now, want = page.locator(".sas-place").first.bounding_box(), [float(x) for x in place.strip("()").split(", ")]
            assert [now["x"], now["y"], now["x"] + now["width"], now["y"] + now["height"]] == pytest.approx(
                [board[a] + board[s]*x for a, s, x in zip("xyxy", ("width", "height")*2, want)], abs=1.5)
            page.screenshot(path=tmp_path/f"dragged{len(films)}.png")
            assert page.evaluate(ELSE) == everything and page.evaluate("shifts") == [] and page.locator(".sas-place").nth(1).bounding_box() == second
        assert not page.errors
