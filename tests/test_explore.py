"The explorer without a browser: positions and their videos, cancelling, and every widget by its traits."
import base64, importlib, threading, time
from dataclasses import replace
from io import BytesIO
from pathlib import Path
import pytest, torch
from PIL import Image
from sas_nb.adapter import SharedLoRA
from sas_nb.atlas.places import load_zoo
from sas_nb.concept import Concept
from sas_nb.dit import VideoDiT
from sas_nb.explore.concepts import lasting_places, named_concepts
from sas_nb.explore.maps import AVERAGE, Position
from sas_nb.explore.page import Explorer
from sas_nb.explore.renderer import Studio
from sas_nb.explore.scene import SceneStudio
from sas_nb.explore.serve import explorer_page, site
from sas_nb.explore.widgets import Pad
from sas_nb.explore.worker import Cancelled, Worker
from sas_nb.files import UserError
from sas_nb.hub import fingerprint
from sas_nb.lab.zoo import save_zoo
from sas_nb.prompt import known_words

LAYERS, SMALL = r"blocks\.[03]\.(attn1\.to_q|attn2\.to_v|ffn\.net\.2)", dict(steps=3, preview=1, guidance=1, num_frames=5)
PROMPT = ("a [v] man in a red shirt in a park", "he is [u] dancing")


@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", "cpu", torch.float32)

def made(dit, n, seed=0, A=None):
    "Concepts as training would leave them, with random coefficients; over one basis unless each has an A of its own."
    start, _ = SharedLoRA(dit, 2, LAYERS).member()
    g = torch.Generator().manual_seed(seed)
    draw = lambda k, v: v if k.endswith(".A") and not A else torch.randn(v.shape, generator=g)*(.3 if k.endswith(".A") else .15)
    info = lambda i: dict(format=1, base="tiny", family=dit.family.name, fingerprint=fingerprint(dit.transformer), appearance=PROMPT[0].replace("red", ("red", "blue", "green", "white")[i]),
                          motion=PROMPT[1], rank=2, layers=LAYERS, clip=dict(name="c", shape=[5, 3, 64, 64], fps=12.), versions={})
    return {n_: Concept({k: draw(k, v) for k, v in start.items()}, {t: torch.randn(dit.text_width, generator=g)*.1 for t in ("[v]", "[u]")}, info(i), dit=dit) for i, n_ in enumerate(("ann", "bob", "cleo", "dan")[:n])}

@pytest.fixture(scope="module")
def concepts(dit): return made(dit, 4)

@pytest.fixture(scope="module")
def studio(concepts): return Studio(concepts, **SMALL)


# Positions

def test_a_start_is_exactly_that_concept(studio, concepts):
    c = studio.concept(Position("bob", "cleo", appearance=.5, motion=1.5))
    for k, w in c.weights.items(): assert w.equal(concepts["cleo" if k.endswith("B2") else "bob"].weights[k])
    assert (c.appearance, c.motion, c.prompt) == (.5, 1.5, concepts["bob"].prompt)
    assert c.tokens["[v]"].equal(concepts["bob"].tokens["[v]"]) and c.tokens["[u]"].equal(concepts["cleo"].tokens["[u]"])


def test_a_slider_moves_one_part_by_its_standard_deviation(studio):
    start, (_, pca) = Position("ann", "ann"), studio.components("appearance", "people")
    moved = studio.concept(replace(start, look_along=(0, 2.))).weights
    change = {k: moved[k]-w for k, w in studio.concept(start).weights.items()}
    assert not any(d.any() for k, d in change.items() if not k.endswith("B1"))
    square = sum(((change[f"{k[:-2]}.B1"] @ w)**2).sum() for k, w in moved.items() if k.endswith(".A"))
    assert float(square)**.5 == pytest.approx(2*pca.std[1], rel=1e-3)


def test_a_slider_moves_every_mixture_alike(studio):
    (_, pca), here = studio.components("motion", "people"), Position("ann", "ann")
    for p in (here, replace(here, dance_by=(.2, -.1)), replace(here, dance=AVERAGE)):
        change = studio.weights(replace(p, dance_along=(-1.5, 0, .5)), "motion") - studio.weights(p, "motion")
        assert change @ pca.scores == pytest.approx([-1.5*pca.std[0], 0, .5*pca.std[2]], abs=1e-9) and change.sum() == pytest.approx(0, abs=1e-12)


def test_every_mark_is_exactly_that_concept_however_one_comes_there(studio, concepts):
    for part, start in (("appearance", "look"), ("motion", "dance")):
        of_part = studio.maps[part]
        for name, place in of_part.places.items():
            p = studio.snap(of_part.move(Position("dan", "dan"), place))
            assert studio.weights(p, part).tolist() == studio.weights(replace(Position("dan", "dan"), **{start: name}), part).tolist()
    there = studio.concept(studio.maps["appearance"].move(Position("ann", "ann"), studio.maps["appearance"].places["cleo"]))
    for k, w in there.weights.items(): assert w.equal(concepts["ann" if k.endswith("B2") else "cleo"].weights[k])


def test_sliders_are_snapped_and_end_at_three(studio):
    p = studio.snap(Position("ann", "ann", look_along=(.3, 9., -9., .1, 2.), dance_along=(.01, .1)))
    assert (p.look_along, p.dance_along) == ((.25, 3., -3.), ())  # four people have three components
    assert p.put("appearance", "bob").look_along == () and studio.maps["appearance"].move(p, (.1, .1)).look_along == p.look_along


def test_the_average_is_the_average(studio, concepts):
    c = studio.concept(Position())
    for k, w in c.weights.items(): torch.testing.assert_close(w, sum(x.weights[k] for x in concepts.values())/4)


def test_snapping(studio):
    p = studio.snap(Position("ann", look_by=(1e-5, -1e-5), appearance=1.01, motion=.98, prompt=" a man "))
    assert p == Position("ann", prompt="a man") and studio.snap(p) == p and "-0" not in repr(p)
    near = studio.maps["motion"].span/40
    assert studio.snap(Position(dance_by=(near*1.4, near*1.6))).dance_by == pytest.approx((near, 2*near))
    with pytest.raises(UserError, match="no 'zoe' here: choose ann"): studio.snap(Position("zoe"))


def test_concepts_with_bases_of_their_own_are_put_over_one(dit):
    apart = made(dit, 2, A=True)
    s = Studio(apart, **SMALL)
    c = s.concept(Position("ann", "bob"))
    assert s.atlas.one_basis and c.rank == 4
    for l in c.layers:
        for b, who in (("B1", "ann"), ("B2", "bob")):
            w = apart[who].weights
            torch.testing.assert_close(c.weights[f"{l}.{b}"] @ c.weights[f"{l}.A"], w[f"{l}.{b}"] @ w[f"{l}.A"], atol=1e-5, rtol=1e-4)


def test_one_concept_has_no_map_but_its_strengths(dit):
    (name, c), = made(dit, 1).items()
    s = Studio({name: c}, **SMALL)
    assert s.names == [name] and s.maps["appearance"].marks("people") == [name]
    for p in (Position(), Position(name, name), Position(name, name, look_by=(.5, .2), look_along=(2.,))): # nowhere else to go
        for k, w in s.concept(p).weights.items(): assert w.equal(c.weights[k])
    assert s.concept(Position(motion=.5)).motion == .5
    e = Explorer(s, faces=0); e.worker.wait()
    assert [m["name"] for m in e.pad["appearance"].marks] == [name] and e.screen.note.startswith("full")
    e.close()


def test_two_concepts_are_a_line(dit):
    s = Studio(made(dit, 2), **SMALL)
    p, of_part = Position("ann", "ann"), s.maps["appearance"]
    half = {y: s.weights(of_part.move(p, (.4, y)), "appearance") for y in (0, .5, -.9)}
    assert of_part.places["ann"][1] == of_part.places["bob"][1] == 0 and all(w.sum() == pytest.approx(1) and 0 < w.min() for w in half.values())


def test_people_and_things_have_maps_of_their_own(dit):
    four = made(dit, 4)
    for n in ("cleo", "dan"): four[n].info |= dict(appearance="a [v] bonfire in a park", motion="[u]")
    s = Studio(four, **SMALL)
    of_part = s.maps["appearance"]
    assert s.groups == dict(people=["ann", "bob"], things=["cleo", "dan"])
    assert of_part.marks("people") == ["ann", "bob", AVERAGE] and of_part.marks("things") == ["cleo", "dan"]
    middle = s.weights(of_part.move(Position("cleo", "ann"), (0, 0)), "appearance")
    assert middle.tolist() == pytest.approx([0, 0, .5, .5]) and s.who(of_part.move(Position("cleo", "ann"), (0, 0)), "appearance") in ("cleo 50%, dan 50%", "dan 50%, cleo 50%")
    assert s.own_prompt(Position("cleo", "ann")).startswith("a [v] bonfire") # one's look with another's dance, from two maps


def test_a_zoo_stands_for_all_in_it(dit, concepts, tmp_path, monkeypatch):
    folder = save_zoo(concepts, tmp_path/"folk")
    (alone,) = made(dit, 1, seed=1, A=None).values()
    reads = []
    monkeypatch.setattr(importlib.import_module(load_zoo.__module__), "load_zoo", lambda z, names=None, load=load_zoo: reads.append(z) or load(z, names, dit=dit))
    s = Studio([folder, alone], **SMALL)
    assert s.names == [*concepts, "concept 5", AVERAGE] and reads == [folder]
    w = s.concept(Position("cleo", "cleo")).weights
    for k, v in concepts["cleo"].weights.items(): torch.testing.assert_close(w[k], v, atol=5e-3, rtol=0)
    places = named_concepts([str(folder)])
    assert places == {n: folder/n for n in concepts} and Studio({n: str(p) for n, p in places.items()}, **SMALL).names == [*concepts, AVERAGE] # what the page is told
    monkeypatch.chdir(tmp_path)
    assert len(named_concepts(["zoo"])) == 72 # the shipped one
    (tmp_path/"zoo").mkdir()
    assert len(named_concepts(["zoo"])) == 72 # also where a folder has that name
    save_zoo(concepts, tmp_path/"zoo")
    assert list(named_concepts(["zoo"])) == list(concepts) # but not where a zoo has it


# Videos

def test_render_is_pure_and_kept(studio):
    p = Position("ann", "dan", look_by=(.1, .1))
    first = studio.render(p)
    assert studio.ready(p) and studio.render(replace(p, appearance=1.004)) is first
    studio.kept.clear()
    studio.render(Position("bob", "bob"))
    assert not studio.ready(p) and studio.render(p) == first # made again, after another: the same bytes
    assert studio.render(replace(p, seed=1)) != first and studio.render(replace(p, motion=0.)) != first


def test_what_is_rendered_is_what_the_concept_generates(studio):
    p = Position("ann", "dan", motion=1.5, prompt="a [v] man in the snow. he is [u] dancing")
    clip = studio.concept(p).generate(p.prompt, 0, 3, 1, num_frames=5)
    assert studio.render(p) == clip.to_mp4()
    preview = Image.open(BytesIO(studio.render(p, quick=True)))
    assert (preview.format, preview.n_frames, preview.size) == ("WEBP", 5, (64, 64))


def test_the_oldest_video_is_forgotten(concepts):
    s = Studio(concepts, **SMALL | dict(most=2))
    places = [Position(n) for n in ("ann", "bob", "cleo")]
    for p in (*places[:2], places[0], places[2]): s.render(p, True)
    assert [s.ready(p, True) for p in places] == [True, False, True]


def test_watch_sees_every_step_and_stops(studio):
    seen, p = [], Position("cleo", seed=5)
    def stop(share):
        seen.append(share)
        if share > .5: raise Cancelled
    with pytest.raises(Cancelled): studio.render(p, watch=stop)
    assert seen == pytest.approx([0, 1/3, 2/3]) and not studio.ready(p)
    hooks = len(studio.dit.transformer._forward_pre_hooks)
    studio.render(p, watch=seen.append)
    assert seen[3:] == pytest.approx([0, 1/3, 2/3, 1]) and len(studio.dit.transformer._forward_pre_hooks) == hooks


# The worker

def test_the_newest_wish_wins():
    worker, begun, done, first = Worker(), threading.Event(), [], []
    def long(stale):
        begun.set()
        while not stale(): time.sleep(.002)
        first.append("stopped")
    worker.ask(long); assert begun.wait(5)
    for n in range(3): worker.ask(lambda stale, n=n: done.append(n)) # the last may overtake the others, never the other way
    assert worker.wait(5) and first == ["stopped"] and done[-1] == 2


def test_errands_wait_for_wishes():
    worker, order, gate = Worker(), [], threading.Event()
    worker.ask(lambda stale: gate.wait(5))
    worker.ask(background=[lambda stale: order.append("errand")])
    worker.ask(lambda stale: order.append("wish"))
    gate.set()
    assert worker.wait(5) and order == ["wish", "errand"]


# The widgets, by their traits

def test_it_opens_on_the_first_concept(explorer):
    assert explorer.position == Position("ann", "ann") and explorer.screen.film and explorer.screen.note.startswith("full video") and explorer.screen.details.startswith("3 steps")
    assert explorer.screen.progress == -1 and "look of ann" in explorer.screen.label
    assert explorer.prompt.placeholder == "a [v] man in a park. he is [u] dancing" # the shirt is in the weights


def test_a_strength_changes_the_video(explorer):
    before = explorer.screen.data
    explorer.strength["motion"].value = 0.; explorer.worker.wait()
    assert explorer.position.motion == 0 and explorer.screen.data == explorer.studio.render(explorer.position) != before


def test_drag_and_release(explorer):
    pad, x = explorer.pad["appearance"], explorer.pad["appearance"].point[0]
    pad.dragging = True
    for k in (1, 2, 3): pad.point = [x+k*pad.step, pad.point[1]]
    explorer.worker.wait()
    assert explorer.position.look_by == pytest.approx((3*pad.step, 0), abs=1e-5)
    assert not explorer.screen.film and explorer.screen.data == explorer.studio.render(explorer.position, True)
    pad.dragging = False; explorer.worker.wait()
    assert explorer.screen.film and explorer.screen.data == explorer.studio.render(explorer.position)


def test_start_and_mark_and_home(explorer):
    explorer.start["motion"].value = "cleo"; explorer.worker.wait()
    pad = explorer.pad["motion"]
    mark = next(m for m in pad.marks if m["name"] == "cleo")
    assert pad.here == "cleo" and pad.point == [mark["x"], mark["y"]] and explorer.position == Position("ann", "cleo")
    pad.point = [mark["x"]+5*pad.step, mark["y"]]
    assert explorer.position.dance_by[0] > 0 and "cleo +" in explorer.position.describe()
    pad._handle_custom_msg(dict(go="cleo"), []) # what a click on the mark sends
    assert explorer.position == Position("ann", "cleo")
    pad._handle_custom_msg(dict(go=AVERAGE), [])
    assert explorer.start["motion"].value == AVERAGE and pad.point == [0, 0] and explorer.position.dance == AVERAGE


EVERYWHERE = Position("bob", "cleo", (.2, 0.), (0., -.1), .5, 1.5, "a [v] man in the snow", 3)

def shown_by(e):
    "What the widgets say, each by itself."
    return {f"{kind} {k}": getattr(w, trait) for kind, trait in (("start", "value"), ("pad", "here"), ("pad", "point"), ("strength", "value")) for k, w in getattr(e, kind).items()} | dict(prompt=e.prompt.value, seed=e.seed.value)


def test_the_widgets_show_the_position(explorer):
    explorer.position = EVERYWHERE
    p, said = explorer.position, shown_by(explorer)
    assert p == explorer.studio.snap(EVERYWHERE) and p.look_by[0] == pytest.approx(.2, abs=explorer.studio.maps["appearance"].span/80)
    for part in ("appearance", "motion"): assert said[f"pad {part}"] == explorer.studio.maps[part].point(p)
    assert [explorer.pad[k].here for k in explorer.pad] == [explorer.start[k].value for k in explorer.start] == ["bob", "cleo"]
    assert (said["strength appearance"], said["strength motion"], said["prompt"], said["seed"]) == (.5, 1.5, p.prompt, 3)
    assert repr(p) in explorer.code.text and explorer.prompt.placeholder.startswith("a [v] man in a park")
    with pytest.raises(UserError, match="no 'zoe'"): explorer.go(Position("zoe"))
    assert explorer.position == p and shown_by(explorer) == said
    explorer.worker.wait()


CHANGES = {"a start": (lambda e: setattr(e.start["motion"], "value", "dan"), dict(dance="dan", dance_by=(0., 0.))),
           "a mark": (lambda e: e.pad["appearance"]._handle_custom_msg(dict(go="ann"), []), dict(look="ann", look_by=(0., 0.))),
           "the mark of the start": (lambda e: e.pad["motion"]._handle_custom_msg(dict(go="cleo"), []), dict(dance_by=(0., 0.))),
           "a point": (lambda e: setattr(e.pad["motion"], "point", list(e.studio.maps["motion"].places["cleo"])), dict(dance_by=(0., 0.))),
           "a strength": (lambda e: setattr(e.strength["motion"], "value", .25), dict(motion=.25)),
           "the prompt": (lambda e: setattr(e.prompt, "value", "a man"), dict(prompt="a man")),
           "the seed": (lambda e: setattr(e.seed, "value", 4), dict(seed=4))}

@pytest.mark.parametrize("what", CHANGES)
def test_one_change_asks_once_and_is_snapped_once(explorer, monkeypatch, what):
    explorer.position = EVERYWHERE
    explorer.worker.wait()
    before, asked, snapped = explorer.position, [], []
    change, fields = CHANGES[what]
    renderer = importlib.import_module(Studio.__module__)
    monkeypatch.setattr(explorer.worker, "ask", asked.append)
    monkeypatch.setattr(renderer, "_nearest", lambda x, step, nearest=renderer._nearest: snapped.append(x) or nearest(x, step))
    change(explorer)
    assert explorer.position == replace(before, **fields) and len(asked) == 1
    asked[0](lambda: False) # the worker's part: no snapping any more
    assert explorer.screen.note.startswith("full") and len(snapped) == 6 # two numbers of each offset, two strengths


def test_a_hand_between_two_points_of_the_grid_is_left_alone(explorer):
    pad, step = explorer.pad["appearance"], explorer.pad["appearance"].step
    x, y = pad.point
    for by, there in ((.3, 0), (1.3, 1), (.9, 1)):
        pad.point = [x + by*step, y]
        assert explorer.position.look_by == pytest.approx((there*step, 0)) and pad.point == [x + by*step, y]
    explorer.prompt.value = "a [v] man in the snow "
    assert explorer.position.prompt == "a [v] man in the snow" and explorer.prompt.value.endswith(" ")
    explorer.strength["motion"].value = 1.3
    assert pad.point == [x + .9*step, y] and explorer.prompt.value.endswith(" ")
    explorer.worker.wait()


def test_a_position_of_another_grid_is_snapped_anew(studio, dit):
    p = studio.snap(Position("ann", look_by=(.2, 0), appearance=1.004))
    assert studio.snap(p) is p and replace(p, seed=1).grid is None
    other = Studio(made(dit, 2, seed=1), **SMALL)
    other.maps = {part: replace(m, step=.01) for part, m in other.maps.items()}
    there = other.snap(replace(p, look_by=(.213, 0)))
    assert there.grid == other.grid != studio.grid and there.look_by[0] == pytest.approx(.21) and other.snap(p) is not p


def test_drawn_widgets_are_sent_what_a_thread_changed_meanwhile(explorer, monkeypatch):
    for w, names in ((explorer.pad["motion"], ("marks", "here", "point")), (explorer.screen, ("data", "turn", "note"))):
        sent = []
        monkeypatch.setattr(w, "_send", lambda message, buffers=None: sent.append((message, buffers)))
        w._handle_custom_msg(dict(drawn=True), [])  # what the page says when it has drawn the widget
        (message, buffers), = sent
        assert message["method"] == "update" and {n: message["state"][n] for n in names if n != "data"} == {n: getattr(w, n) for n in names if n != "data"}
        assert not {k for k in message["state"] if k[0] == "_"}, "the code that draws is not sent again"
        if "data" in names: assert [bytes(b) for b in buffers] == [w.data] and w.data


def test_an_older_state_is_never_sent_last(monkeypatch):
    pad, sent, reading = Pad(marks=[dict(name="old")]), [], threading.Event()
    def slow(message, buffers=None): reading.set(); time.sleep(.2 if message["state"]["marks"][0]["name"] == "old" else 0); sent.append(message["state"]["marks"][0]["name"])
    monkeypatch.setattr(pad, "_send", slow)
    first = threading.Thread(target=pad._handle_custom_msg, args=(dict(drawn=True), [])); first.start()
    assert reading.wait(10)
    pad.marks = [dict(name="new")]
    first.join()
    assert sent[-1] == "new"


def test_the_same_video_is_not_played_again(explorer):
    screen, turn = explorer.screen, explorer.screen.turn
    screen.show(screen.data, screen.film, "other words")
    assert screen.turn == turn and screen.label == "other words"
    screen.show(b"another", True, ""); assert screen.turn == turn+1


def test_prompt_marks_words_and_says_what_it_does_not_know(explorer):
    before = explorer.screen.data
    explorer.prompt.value = "a [v] man in the sn"; explorer.worker.wait()
    assert explorer.prompt.unknown == [dict(word="sn", near=["snow"])] and "does not know 'sn'" in explorer.screen.note and len(explorer.screen.note) < 100 and "`sas-nb models --words tiny`" in explorer.screen.note
    assert explorer.screen.data == before and explorer.screen.old == "still the video before" # it stays, and says so
    explorer.prompt.value = "a [v] man in the snow"; explorer.worker.wait()
    assert explorer.screen.note.startswith("full") and explorer.screen.data != before and explorer.position.prompt == "a [v] man in the snow"
    assert explorer.screen.old == "" and explorer.prompt.unknown == []
    assert "has no [u]" in explorer.prompt.hint and "he is [u] dancing" in explorer.prompt.hint and "[u]" not in explorer.screen.note
    explorer.prompt.value = ""; explorer.worker.wait()
    assert explorer.prompt.hint == ""


def test_a_slow_video_leaves_the_one_before_marked_as_old(explorer, monkeypatch):
    seen, render, kind = [], explorer.studio.render, type(explorer.studio)
    monkeypatch.setattr(kind, "seconds", lambda self, quick=False: 5.)
    monkeypatch.setattr(kind, "render", lambda self, p=None, quick=False, watch=None: seen.append((quick, explorer.screen.old)) or render(p, quick))
    explorer.start["motion"].value = "dan"; explorer.worker.wait()
    assert seen[0] == (True, "still the video before") and all(not old for quick, old in seen if not quick)
    assert explorer.screen.old == "" and explorer.screen.data


def test_vocabulary(dit):
    words = known_words(dit.tokenizer)
    assert {"[v]", "[u]", "dancing", "snow"} <= set(words) and not [w for w in words if "\u2581" in w]


def test_pins(explorer):
    explorer.pin(); first = explorer.screen.data
    explorer.start["appearance"].value = "dan"; explorer.worker.wait(); explorer.pin()
    one, two = explorer.pins.children
    assert one.children[0].data == first != two.children[0].data
    back, off = one.children[2].children
    back.click(); explorer.worker.wait()
    assert explorer.position == one.position == Position("ann", "ann") and explorer.screen.data == first
    off.click()
    assert explorer.pins.children == (two,)


def test_save_export_and_code_give_the_same_concept(explorer, concepts):
    explorer.go(Position("ann", "dan", look_by=(.2, 0), appearance=1.2, prompt="a [v] man in the snow"))
    explorer.name.value = "my mix"
    explorer.buttons["save"].click(); explorer.buttons["export"].click()
    saved, here = Concept.load(explorer.out/"my mix", explorer.studio.dit), explorer.studio.concept(explorer.position)
    assert "Wrote" in explorer.saved.value and (explorer.out/"my mix-diffusers/pytorch_lora_weights.safetensors").exists()
    assert (saved.appearance, saved.motion, saved.info["position"]["dance"]) == (1.2, 1., "dan")
    for k, w in here.weights.items(): assert w.equal(saved.weights[k])
    lines = explorer.code.text.splitlines(keepends=True)
    exec("".join(lines[:5]), space := dict(concepts=concepts)) # up to `concept = ...`
    for k, w in here.weights.items(): assert w.equal(space["concept"].weights[k])


def test_what_was_said_of_saving_goes_with_the_place_and_the_view(explorer):
    for leave in (lambda: explorer.go(Position("dan", "dan")), lambda: setattr(explorer.views, "chosen", "faces")):
        explorer.views.chosen, explorer.name.value = "keep", f"only {explorer.position.look}"
        explorer.buttons["save"].click(); assert "Wrote" in explorer.saved.value and not explorer.message.value
        leave()
        assert not explorer.saved.value


@pytest.mark.parametrize("name, says", [("../out", "no name for a folder"), ("", "no name"), ("a/b", "no name"), ("taken", "exists already")])
def test_a_bad_name_is_a_sentence(explorer, name, says):
    (explorer.out/"taken").mkdir(parents=True)
    explorer.name.value = name; explorer.buttons["save"].click()
    assert says in explorer.saved.value and len(list(explorer.out.iterdir())) == 1


def test_stop(explorer, monkeypatch):
    running, go_on = threading.Event(), threading.Event()
    with monkeypatch.context() as m:
        m.setattr(explorer.studio, "render", lambda p, quick, watch: (running.set(), go_on.wait(5), watch(.5)))
        explorer.seed.value = 99
        assert running.wait(5)
        explorer.buttons["cancel"].click(); go_on.set(); explorer.worker.wait()
    assert explorer.screen.note == "stopped" and explorer.screen.progress == -1


def test_what_fails_is_told_and_the_worker_lives_on(explorer, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(explorer.studio, "render", lambda *a: 1/0)
        explorer.seed.value = 7; explorer.worker.wait()
        assert "ZeroDivisionError" in explorer.screen.note
    explorer.seed.value = 8; explorer.worker.wait()
    assert explorer.screen.note.startswith("full")


def test_faces(studio, tmp_path):
    e = Explorer(studio, out=tmp_path, faces=2); assert e.worker.wait()
    for pad in e.pad.values(): assert [m["name"] for m in pad.marks if m.get("image", "").startswith("data:image/webp;base64,")] == ["ann", "bob"]
    e.close()


def test_widgets_come_with_a_picture(explorer):
    bundle = explorer._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.pane.model_id
    assert Image.open(BytesIO(base64.b64decode(bundle["image/png"]))).size[0] > 400


# The page

def test_page_is_an_explorer_or_a_sentence(concepts, tmp_path):
    for n in ("ann", "bob"): concepts[n].save(tmp_path/n)
    e = explorer_page({n: str(tmp_path/n) for n in ("ann", "bob")}, out=str(tmp_path/"out"), faces=0, **SMALL)
    assert e.worker.wait() and e.studio.names[:2] == ["ann", "bob"] and str(tmp_path/"ann") in e.code.text
    e.close()
    (tmp_path/"bob/concept.safetensors").write_bytes(b"no")
    assert 'role="alert"' in explorer_page({n: str(tmp_path/n) for n in ("ann", "bob")}).data


def test_code_names_what_was_given(concepts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n in ("ann", "bob"): concepts[n].save(f"runs/{n}/concept")
    save_zoo(concepts, "folk")
    here = str(tmp_path.resolve())
    for given, written in (("zoo", ["zoo"]), (["zoo/man-02", "runs/ann"], ["zoo/man-02", f"{here}/runs/ann"]), (Path("folk"), [f"{here}/folk"]), ("folk/bob", [f"{here}/folk/bob"]), (dict(a="runs/ann"), dict(a=f"{here}/runs/ann")), ([concepts["ann"], "zoo"], None), (dict(a=concepts["ann"]), None)):
        assert lasting_places(given) == written, given
    (tmp_path/"zoo/concept").mkdir(parents=True)
    assert lasting_places("zoo") == ["zoo"] # a run of this name holds no zoo
    concepts["ann"].save("zoo/concept")
    assert lasting_places("zoo") == ["zoo"] and lasting_places(dict(a="zoo")) == dict(a=f"{here}/zoo") # a name's value is never a zoo
    assert list(Studio(dict(a="zoo"), **SMALL).names) == ["a"]
    text = Studio(iter(["runs/ann", "runs/bob"]), **SMALL).code(Position("ann", "bob"))
    monkeypatch.chdir("/")
    exec("".join(text.splitlines(keepends=True)[:-2]), space := {})
    for k, w in concepts["bob"].weights.items(): assert k.endswith("B1") or w.equal(space["concept"].weights[k])


def test_names_of_folders(concepts, tmp_path):
    for folder in ("run/concept", "other/run/concept", "cleo"): concepts["cleo"].save(tmp_path/folder)
    s = Studio([tmp_path/"run", tmp_path/"other/run", tmp_path/"cleo", concepts["ann"]], **SMALL)
    assert s.names == ["run (1)", "run (2)", "cleo", "concept 4", AVERAGE]


def test_site_says_what_is_wrong(concepts, tmp_path, monkeypatch):
    import socket
    concepts["ann"].save(tmp_path/"ann")
    with pytest.raises(UserError, match="is not the folder of a saved concept"), site([tmp_path/"ann"/"nothing"]): pass
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); s.listen()
        with pytest.raises(UserError, match="cannot be used"), site([tmp_path/"ann"], port=s.getsockname()[1]): pass
    with pytest.raises(UserError, match="Port 80 of 'no such host' cannot be used"), site([tmp_path/"ann"], "no such host", 80): pass
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*\[explore\]"), site([tmp_path/"ann"]): pass


def test_an_ipv6_address_can_be_listened_on():
    import socket
    from sas_nb.explore.serve import _check_port
    try: s = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError: pytest.skip("this machine has no IPv6")
    port = s.getsockname()[1]
    with s, pytest.raises(UserError, match="Port .* of '::1' cannot be used"): _check_port("::1", port)
    _check_port("::1", port)


@pytest.mark.parametrize("kind", [Studio, SceneStudio])
def test_a_size_by_a_wrong_name_is_told(kind):
    with pytest.raises(UserError, match=f"{kind.__name__} has no 'frames': try num_frames."): kind(["zoo/man-02", "zoo/man-04"], frames=9)


def test_command(concepts, tmp_path, monkeypatch):
    from typer.testing import CliRunner
    from sas_nb import cli
    given = {}
    with monkeypatch.context() as m:
        m.setattr("sas_nb.explore.serve.serve", lambda concepts, browser, **kwargs: given.update(concepts=concepts, browser=browser, **kwargs))
        done = CliRunner().invoke(cli.app, ["explore", "ann", "bob", "--port", "9001", "--no-browser", "--out", str(tmp_path)])
    assert done.exit_code == 0 and given == dict(concepts=[Path("ann"), Path("bob")], browser=False, host="127.0.0.1", port=9001, out=tmp_path)
    done = CliRunner().invoke(cli.app, ["explore", str(tmp_path)])
    assert done.exit_code == 1 and "is not the folder of a saved concept" in done.output and "Traceback" not in done.output


# Sliders, prompts, and the end

def test_sliders_are_offered_by_what_they_do(dit, monkeypatch):
    s = Studio(made(dit, 4), **SMALL)
    start = s.start
    assert s.sliders(start, "appearance") == []  # before they were tried
    s.effects["people"] = {"look 1": .9, "look 2": 1.2, "look 3": 2., "dance 1": .2}
    assert [x.label for x in s.sliders(start, "appearance")] == ["look 3", "look 2"] and s.sliders(start, "motion") == []
    slider = s.sliders(start, "appearance")[0]
    p = slider.put(replace(start, look_along=(1.,)), -2.)
    assert p.look_along == (1., 0., -2.) and slider.value(p) == -2 and slider.value(start) == 0
    assert slider.end(3., AVERAGE) == Position(look_along=(0., 0., 3.))


def test_effects_are_measured_in_those_of_another_seed(dit, monkeypatch, tmp_path):
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path))
    sliders = importlib.import_module("sas_nb.explore.sliders")
    monkeypatch.setattr(sliders, "TRIED", 1)
    s = Studio(made(dit, 3), **SMALL)
    s.try_sliders("people")
    assert list(s.effects["people"]) == ["look 1", "dance 1"] and all(x > 0 for x in s.effects["people"].values())


def test_a_thumbnail_is_drawn_once_for_all_studios(concepts, monkeypatch, tmp_path):
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path))
    s = Studio(concepts, **SMALL)
    first = s.thumbnail(Position("bob", "bob"))
    assert first == s.render(Position("bob", "bob"), quick=True)
    other = Studio(concepts, **SMALL)
    assert other.thumbnail(Position("bob", "bob")) == first and not other.kept and other.thumbnail(Position("ann", "ann")) != first


def test_render_begins_at_the_first(studio): assert studio.render(quick=True) == studio.render(studio.start, quick=True)


def test_python_ends_cleanly_while_the_worker_is_in_the_model(tmp_path):
    import subprocess, sys
    script = """import torch, threading
from sas_nb.explore.worker import Worker
begun = threading.Event()
def job(stale):
    x = torch.ones(200, 200); begun.set()
    while not stale(): x = torch.tanh(x @ x)
    print("left the model", flush=True)
Worker().ask(job); begun.wait(60)"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (0, "left the model\n"), run.stderr
