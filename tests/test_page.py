"The page without a browser: words and chips, small clips, the table, the line, and what is at hand."
import json, os
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
from PIL import Image
from sas_nb.files import UserError
from sas_nb.atlas.places import load_zoo
from sas_nb.dit import VideoDiT
from sas_nb.explore.controls import help_of
from sas_nb.explore.links import examples_of, SEEN
from sas_nb.explore.maps import AVERAGE, in_words, percents, Position
from sas_nb.explore.other_bases import grouped_by_basis
from sas_nb.explore.page import Explorer
from sas_nb.explore.renderer import Studio
from sas_nb.explore.scene import SceneStudio
from sas_nb.explore.serve import at_hand, explorer_page, own_concepts
from sas_nb.explore.sights import between, cell_position, filmed, strip, strip_of
from sas_nb.explore.widgets import Clips, Strip
from sas_nb.explore.words import carried, chips_of, chosen_chips, fitting, toggled, with_chips, without_chips
from sas_nb.prompt import unknown_words

SMALL = dict(steps=2, preview=1, guidance=1, num_frames=5)
WOMAN, MAN = "a [v] woman in a park. she is [u] dancing", "a [v] man in a park. he is [u] dancing"


@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", "cpu")

@pytest.fixture(scope="module")
def zoo(dit): return load_zoo("zoo", ["woman-00", "man-02", "man-04", "bonfire-01"], dit)

@pytest.fixture(scope="module")
def studio(zoo): return Studio(zoo, **SMALL)

@pytest.fixture(scope="module")
def chips(dit): return chips_of(dit) | dict(Movement=["dancing", "waving", "walking"])


# Words

@pytest.mark.parametrize("text, unknown", [
    ("a [v] woman in the sn", {"sn": "snow"}), ("a [v] woman, da", {"da": "dancing"}), ("v woman", {"v": "[v]"}), ("a womann. trouserz!", {"womann": "woman", "trouserz": "trousers"}),
    (WOMAN, {}), ("", {}), ("[v] [u]", {})])
def test_unknown_words_and_near_ones(studio, text, unknown):
    told = unknown_words(text, studio.dit.tokenizer, studio.words)
    assert {u["word"]: u["near"][0] for u in told} == unknown


@pytest.mark.parametrize("word, first", [("snoww", "snow"), ("parc", "park"), ("walkin", "walking"), ("st", "stage")])
def test_misspellings_come_before_beginnings(studio, word, first):
    (told,) = unknown_words(f"a {word}", studio.dit.tokenizer, studio.words)
    assert told["near"][0] == first and len(told["near"]) <= 3


def test_nothing_near_is_no_offer(studio): assert unknown_words("zzzzzz", studio.dit.tokenizer, studio.words)[0]["near"] == []


def test_chips_are_those_that_the_base_knows(dit, chips, tmp_path, monkeypatch):
    assert list(chips_of(dit)) == ["Hat", "Place", "Light"] and "in the snow" in chips["Place"]
    for phrases in chips.values():
        for p in phrases: assert not unknown_words(p, dit.tokenizer, [])
    (tmp_path/"sas_nb.json").write_text(json.dumps(dict(chips=dict(Place=["in the forest", "on the moon"], Weather=["in fog"]))))
    monkeypatch.setattr(dit, "checkpoint", SimpleNamespace(folder=tmp_path))
    assert chips_of(dit) == dict(Place=["in the forest"]) # its own, but no word that it lacks


@pytest.mark.parametrize("chip, text", [
    ("in the snow", "a [v] woman in the snow. she is [u] dancing"), ("at night", "a [v] woman in a park at night. she is [u] dancing"), ("waving", "a [v] woman in a park. she is [u] waving"),
    ("wearing a cap", "a [v] woman wearing a cap in a park. she is [u] dancing"), ("in a park", "a [v] woman. she is [u] dancing"), ("dancing", "a [v] woman in a park. she is [u]")])
def test_a_chip_goes_in_and_out(chips, chip, text):
    assert toggled(WOMAN, chip, chips) == text
    assert chosen_chips(toggled(text, chip, chips, WOMAN), chips) == chosen_chips(WOMAN, chips) or chip in WOMAN
    again = toggled(text, chip, chips)
    if chip in WOMAN: assert again == WOMAN
    else: assert chip not in chosen_chips(again, chips) and without_chips(again, chips) == without_chips(WOMAN, chips)


def test_a_word_that_only_begins_like_a_chip_is_none(): assert chosen_chips("a cat in the snowfall", dict(Place=["in the snow"])) == []


WAVES = "a [v] ocean waves at sea. it is [u] rolling"

def test_help_speaks_of_the_chips_that_there_are(explorer):
    assert explorer.head.help[1] == "Words: edit the sentence, or click what is below it: hat, place, light."
    assert help_of({})[1] == "Words: edit the sentence." and help_of(dict(Weather=["in fog"]))[1].endswith("below it: weather.")


def test_chips_fit_the_subject(chips):
    assert fitting(chips, WOMAN) == fitting(chips, "two [v] dancers are people") == chips
    for own in (WAVES, "a [v] flag in a park. it is [u] waving", ""):
        kept = fitting(chips, own)
        assert list(kept) == ["Place", "Light"] and kept["Place"] == chips["Place"]
    own_kinds = dict(Weather=["in fog"], Style=["wearing a red scarf", "at dawn"], Movement=["bowing"])
    assert fitting(own_kinds, WAVES) == dict(Weather=["in fog"], Style=["at dawn"])


def test_a_hat_stays_behind_and_a_dance_comes_back(chips):
    hat = toggled(toggled(WOMAN, "wearing a cap", chips), "in the snow", chips)
    at_sea = carried(hat, WOMAN, WAVES, chips)
    assert at_sea == "a [v] ocean waves at sea in the snow. it is [u] rolling"
    assert carried(at_sea, WAVES, MAN, chips) == "a [v] man in the snow. he is [u] dancing"


@pytest.mark.parametrize("shares, words", [
    (dict(ann=1/3, bea=1/3, cleo=1/3), "ann 34%, bea 33%, cleo 33%"), (dict(ann=.5, bea=.2, cleo=.15, dan=.1, eli=.05), "ann 50%, bea 20%, cleo 15%, others 15%"),
    (dict(ann=.664, bea=.168, cleo=.168), "ann 66%, bea 17%, cleo 17%"), (dict(ann=.998, bea=.002), "ann"), (dict(ann=1.), "ann"), ({"ann": .125, "bea": .125, "cleo": .125, **{f"x{i}": .125 for i in range(5)}}, "ann 13%, bea 13%, cleo 12%, others 62%")])
def test_shares_sum_to_a_hundred(shares, words):
    assert in_words(Position("ann", "ann"), "appearance", shares) == words
    assert sum(percents(shares).values()) == 100 and all(abs(percents(shares)[n] - 100*s) < 1 for n, s in shares.items() if n in percents(shares))


def test_a_slider_has_one_name(studio):
    from sas_nb.explore.sliders import tried
    for slider in tried(studio, "people"):
        p = slider.put(Position("woman-00", "man-02"), 1.5)
        assert studio.who(p, slider.part).endswith(f"; {slider.label} +1.5") and slider.label in p.describe() and "component" not in p.describe() + studio.describe(p)


def test_chips_come_along_and_own_texts_stay(chips):
    assert carried(toggled(WOMAN, "in the snow", chips), WOMAN, MAN, chips) == "a [v] man in the snow. he is [u] dancing"
    assert carried("a [v] tree in the snow", WOMAN, MAN, chips) == "a [v] tree in the snow" and carried("", WOMAN, MAN, chips) == "" and carried(WOMAN, WOMAN, MAN, chips) == ""
    assert with_chips("a [v] flag in the wind. [u]", ["at night"], chips) == "a [v] flag in the wind at night. [u]"


def test_the_prompt_is_a_text_that_follows_the_concept_until_it_is_edited(explorer):
    own = explorer.prompt.value
    assert own == explorer.studio.own_prompt(explorer.position) and "woman" in own and explorer.position.prompt == ""
    explorer.start["appearance"].value = "man-02"
    assert explorer.prompt.value.startswith("a [v] man") and explorer.position.prompt == ""
    explorer.prompt._handle_custom_msg(dict(chip="in the snow"), [])
    assert "in the snow" in explorer.prompt.value and explorer.position.prompt == explorer.prompt.value and "in the snow" in explorer.prompt.chosen
    explorer.start["appearance"].value = "woman-00"
    assert explorer.prompt.value.startswith("a [v] woman in the snow")
    explorer.prompt.value = own
    assert explorer.position.prompt == ""
    explorer.worker.wait()


# Small clips

def test_a_strip_holds_all_frames_in_a_row():
    frames = np.zeros((30, 40, 80, 3), np.uint8); frames[0] = 255
    s = strip(frames, 10., side=20, most=15)
    picture = np.asarray(Image.open(BytesIO(s.data)).convert("L"))
    assert (s.frames, s.fps, s.shape, picture.shape) == (15, 5., 2., (20, 600)) and picture[:, :38].min() > 200 and picture[:, 44:].max() < 60


def test_room_is_kept_in_the_videos_shape(zoo):
    some = dict(list(zoo.items())[:2])
    for kind in (Studio, SceneStudio):
        assert kind(some).shape == 1. and kind(some, height=32, width=64).shape == 2. and kind(some, width=32).shape == .5


def test_a_strip_of_a_preview_and_of_a_film(studio):
    p = studio.start
    for quick in (True, False):
        s = strip_of(studio.render(p, quick))
        assert (s.frames, s.shape) == (5, 1.) and s.fps == pytest.approx(12, rel=.02)


def test_what_was_filmed(studio, zoo, tmp_path):
    assert filmed(zoo["bonfire-01"].info, None, studio.dit).frames == 17
    assert filmed(dict(clip=dict(fps=8.)), tmp_path, studio.dit) is None
    import torch
    from safetensors.torch import save_file
    save_file({"0/latents": torch.zeros(1, studio.dit.vae.config.z_dim, 2, 8, 8)}, tmp_path/"motion.data.safetensors")
    for place in (tmp_path, tmp_path/"concept"): assert filmed(dict(clip=dict(fps=8.)), place, studio.dit).fps == 8.


def test_a_run_shows_its_own_film(studio, tmp_path):
    import torch
    from sas_nb.clip import Clip
    red = torch.zeros(9, 3, 64, 64); red[:, 0] = 1
    for folder in (tmp_path/"run", tmp_path/"run"/"concept"): folder.mkdir()
    Clip(red, 8.).save(tmp_path/"run"/"reference.mp4")
    for place in (tmp_path/"run", tmp_path/"run"/"concept"):
        s = filmed(dict(clip=dict(fps=12.)), place, studio.dit)
        assert (s.frames, s.fps) == (9, 8.) and np.asarray(Image.open(BytesIO(s.data)))[48, 48].tolist() == pytest.approx([254, 0, 0], abs=12)
    (tmp_path/"run"/"reference.mp4").write_bytes(b"no film")
    assert filmed({}, tmp_path/"run", studio.dit) is None


# Concepts of another basis

@pytest.fixture(scope="module")
def beside(zoo):
    "One of another basis, and three of a zoo."
    from dataclasses import replace
    demo = replace(zoo["woman-00"], weights={k: w.flip(0) if k.endswith(".A") else w for k, w in zoo["woman-00"].weights.items()})
    return Studio(dict(demo=demo) | zoo, **SMALL)


def test_one_of_another_basis_has_its_own_map_and_one_sentence(beside, tmp_path):
    assert beside.groups == dict(people=["woman-00", "man-02", "man-04"], things=["bonfire-01"], demo=["demo"])
    e = Explorer(beside, out=tmp_path, faces=0)
    assert e.table.rows == e.table.columns == ["woman-00", "man-02", "man-04", "bonfire-01"] and e.position == Position("woman-00", "woman-00") and not e.apart.value  # not on a map of one
    assert e.faces.cells[0]["key"] == "demo" and e.head.examples[-1] == "demo"  # in the grid, and one click away
    e.head._handle_custom_msg(dict(example=2), [])
    assert e.position == Position("demo", "demo")
    assert e.head.examples[0] == "woman-00 dances like man-04" and any("share a basis" in line for line in e.head.help)
    e.start["motion"].value = "man-02"
    assert e.apart.value.count("Different bases: demo and man-02") == 1
    e.start["appearance"].value = "woman-00"
    assert not e.apart.value
    e.close(); e.worker.wait()


@pytest.mark.parametrize("own, title", [(["me"], "me"), (["me", "you"], "me and you"), (["me", "you", "she"], "me and 2 others"), (["people"], "people'")])
def test_the_map_of_ones_own_has_their_names(zoo, own, title):
    zoos = ["ann", "bob", "cleo", "dan"]
    for number in (lambda i: 1, lambda i: i+1):  # learned together, or each alone
        basis = dict.fromkeys(zoos, 0) | {name: number(i) for i, name in enumerate(own)}
        assert grouped_by_basis(dict.fromkeys(basis, zoo["woman-00"].info), basis) == {"people": zoos, title: own}


def test_the_page_begins_where_a_map_leads_somewhere(zoo):
    from dataclasses import replace
    turn = lambda c, n: replace(c, weights={k: w.roll(n, 0) if k.endswith(".A") else w for k, w in c.weights.items()})
    sea, fire = turn(zoo["bonfire-01"], 1), zoo["bonfire-01"]
    start = lambda **concepts: Studio(concepts, **SMALL).start.look
    assert start(sea=sea) == "sea" and start(sea=sea, fire=fire) == "sea"  # there is nothing better
    assert start(sea=sea, ann=zoo["woman-00"], bob=zoo["man-02"]) == "ann"
    assert start(sea=sea, other=turn(zoo["woman-00"], 2), ann=zoo["woman-00"], bob=zoo["man-02"]) == "ann"  # those two are only added up
    assert start(fire=fire, ann=zoo["woman-00"], bob=zoo["man-02"]) == "ann"


def test_chips_follow_the_look(explorer):
    kinds = lambda: list(explorer.prompt.chips)
    assert kinds() == ["Hat", "Place", "Light"]
    explorer.start["appearance"].value = "bonfire-01"
    assert kinds() == ["Place", "Light"]
    explorer.start["motion"].value = "bonfire-01"
    assert kinds() == ["Place", "Light"]
    explorer.start["appearance"].value = "man-02"
    assert kinds() == ["Hat", "Place", "Light"]
    explorer.worker.wait()


def test_room_is_kept_for_pictures_that_come_later(explorer, studio, monkeypatch):
    from sas_nb.explore.offered import show_sliders
    from sas_nb.explore.sliders import tried
    monkeypatch.setattr(explorer.screen, "shape", 1.5)
    monkeypatch.setattr(studio, "sliders", lambda p, part: [s for s in tried(studio, "people") if s.part == part][:1], raising=False)
    monkeypatch.setattr("sas_nb.explore.offered.when_idle", lambda e, do: None)
    show_sliders(explorer)
    (w,) = explorer.sliders["appearance"].children
    assert w.low == w.high == dict(shape=1.5)


def test_those_with_a_basis_each_still_have_a_map(zoo):
    from dataclasses import replace
    turn = lambda c, n: replace(c, weights={k: w.roll(n, 0) if k.endswith(".A") else w for k, w in c.weights.items()})
    s = Studio(dict(ann=turn(zoo["woman-00"], 1), bob=turn(zoo["man-02"], 2)), **SMALL)
    assert s.groups == dict(people=["ann", "bob"]) and s.alike() == ["ann", "bob"]
    half = s.maps["appearance"].move(Position("ann", "ann"), (0., 0.))
    assert s.apart(half) and not s.apart(Position("ann", "ann")) and not s.apart(Position("ann", "bob", motion=0.))


def test_a_zoo_keeps_its_sliders_beside_others(zoo, tmp_path, monkeypatch):
    from sas_nb.explore.other_bases import known_controls
    members = ["ann", "bob"]
    (tmp_path/"controls.json").write_text(json.dumps(dict(people=dict(base="x", members=members, sliders={"look 1": dict(effect=2.)}))))
    places = {n: tmp_path/n for n in ("bob", "ann", "eve")} | dict(mine=tmp_path/"other"/"mine")
    assert known_controls(list(places), places, "x")["members"] == members
    assert known_controls(["ann", "mine"], places, "x") == {} and known_controls(list(places), places, "y") == {}


def test_the_choice_follows_a_drag(explorer):
    e = explorer
    of_part = e.studio.maps["appearance"]
    e.start["appearance"].value = "woman-00"
    e.pad["appearance"].point = of_part.places["man-04"]
    assert e.start["appearance"].value == "man-04" and e.beside["appearance"].cells[0]["key"] == "man-04" and e.position == Position("man-04", "woman-00")
    x, y = of_part.places["man-04"]
    e.pad["appearance"].point = [.9*x, .9*y]
    assert e.start["appearance"].value == "man-04" and "% of it" in e.beside["appearance"].cells[0]["label"]
    e.worker.wait()


def test_strips_are_sent_once_each_and_again_when_drawn(monkeypatch):
    clips, sent = Clips(), []
    monkeypatch.setattr(clips, "send", lambda message, buffers=None: sent.append((message["strip"], buffers)))
    monkeypatch.setattr(clips, "send_state", lambda keys=None: None)
    one = Strip(b"1", 2, 3., 1.)
    clips.put("ann", one); clips.put("ann", one)
    assert sent == [("ann", [b"1"])]
    clips._handle_custom_msg(dict(drawn=True), [])
    assert sent == [("ann", [b"1"])]*2


def test_faces_and_references(studio, tmp_path):
    e = Explorer(studio, out=tmp_path); assert e.worker.wait()
    assert not e.gaps and set(e.faces.strips) == {"woman-00", "man-02", "man-04", "bonfire-01", AVERAGE}
    assert [n for n, film in e.filmed.items() if not film] == [AVERAGE]
    for pad in e.pad.values(): assert all(m["image"].startswith("data:image/webp") for m in pad.marks if m["name"] in e.strips)
    e.faces._handle_custom_msg(dict(go="man-04"), [])
    assert e.position == Position("man-04", "man-04") and e.faces.chosen == ["man-04"] and e.beside["motion"].cells[0]["key"] == "man-04" and "man-04" in e.beside["motion"].strips
    e.takes.value = "motion"; e.faces._handle_custom_msg(dict(go="man-02"), [])
    assert e.position == Position("man-04", "man-02")
    e.beside["motion"]._handle_custom_msg(dict(go="man-02"), [])
    e.close(); e.worker.wait()


def test_a_face_that_cannot_be_made_leaves_a_gap(studio, tmp_path, monkeypatch):
    import sas_nb.explore.sights as sights
    monkeypatch.setattr(sights, "filmed", lambda info, *args: None if "woman" in info.get("appearance", "") else 1/0)
    e = Explorer(studio, out=tmp_path); assert e.worker.wait()
    assert list(e.faces.strips) == ["woman-00"] and len(e.gaps) == 4 and e.filmed["woman-00"] is False
    assert "A part of the page is missing. Something went wrong that should not have (ZeroDivisionError" in e.message.value
    e.close(); e.worker.wait()


# Places of their own

def test_the_table_is_made_when_somebody_looks(explorer):
    e = explorer
    assert e.table.rows == e.table.columns == ["woman-00", "man-02", "man-04", "bonfire-01"] and not e.table.strips
    for kind, trait in (("look", "rows"), ("dance", "columns")): setattr(e.table, trait, ["woman-00", "man-02"])
    e.views.chosen = "table"; e.worker.wait()
    assert set(e.table.strips) == {f"{a}|{b}" for a in ("woman-00", "man-02") for b in ("woman-00", "man-02")}
    assert e.table.strips["man-02|woman-00"] == strip_of(e.studio.render(cell_position(e, "man-02", "woman-00")))
    e.table._handle_custom_msg(dict(head="dance", at=1, name="man-04"), []); e.worker.wait()
    assert e.table.columns == ["woman-00", "man-04"] and "man-02|man-04" in e.table.strips
    e.table._handle_custom_msg(dict(go="man-02|man-04"), [])
    assert e.position == Position("man-02", "man-04") and e.table.chosen == ["man-02|man-04"]
    before = e.table.strips["man-02|man-04"]
    e.seed.value = 5; e.worker.wait()
    assert e.table.strips["man-02|man-04"] != before and cell_position(e, "woman-00", "woman-00").seed == 5


def test_the_line_begins_at_one_and_ends_at_the_other(explorer):
    e, s = explorer, explorer.studio
    weigh = lambda share, other="man-04": [s.weights(between(e, "man-02", other, share), part).round(6).tolist() for part in ("appearance", "motion")]
    for share, name in ((0, "man-02"), (1, "man-04")): assert weigh(share) == [np.eye(4)[s.atlas.index(name)].tolist()]*2
    assert all(0 < max(w) < 1 for w in weigh(.5))
    assert not s.parted("man-02", "man-04") and not e.parted.value and e.line.layout.display != "none"
    e.ends[0].value, e.ends[1].value = "man-02", "man-04"
    e.views.chosen = "line"; e.worker.wait()
    assert set(e.way.strips) == {"0", "0.25", "0.5", "0.75", "1"}
    e.way._handle_custom_msg(dict(go="1"), [])
    assert e.line.value == 1 and e.position == Position("man-04", "man-04")
    e.worker.wait()


def test_there_is_no_line_between_two_maps(explorer, beside, tmp_path):
    def no_line(e, one, other, why):
        e.go(Position(one, one)); e.ends[0].value, e.ends[1].value = one, other
        e.views.chosen = "line"
        for share in (.45, .55, 1.): e.line.value = share
        assert e.position == Position(one, one) and why in e.parted.value and e.line.layout.display == "none" and not e.way.cells
        e.line.value = 0.
    no_line(explorer, "man-02", "bonfire-01", "man-02 and bonfire-01 stand on different maps")
    e = Explorer(beside, out=tmp_path, faces=0)
    no_line(e, "woman-00", "demo", "woman-00 and demo have different bases")
    e.ends[1].value = "man-04"; e.line.value = 1.
    assert not e.parted.value and e.line.layout.display == "" and len(e.way.cells) == 5 and e.position == Position("man-04", "man-04")
    e.views.chosen = explorer.views.chosen = "faces"; explorer.worker.wait()
    e.close(); e.worker.wait()


def test_examples_are_places_here(explorer):
    labels = explorer.head.examples
    assert len(labels) == 3 and labels[0].startswith("woman-00 dances like ")
    for i, label in enumerate(labels):
        explorer.head._handle_custom_msg(dict(example=i), [])
        assert explorer.position.dance in label or explorer.position.prompt.split(" in ")[-1].split(".")[0] in label
    explorer.worker.wait()


def test_pins_show_their_seed(explorer):
    explorer.seed.value = 7; explorer.worker.wait(); explorer.pin()
    assert "seed 7" in explorer.pins.children[0].children[1].value and explorer.views.titles["pins"] == "Pinned (1)"


def test_an_empty_view_of_pins_says_what_to_do_and_their_number_is_kept(explorer):
    assert "Pin" in explorer.unpinned.value and explorer.views.titles["pins"] == "Pinned"
    explorer.pin(); explorer.pin()
    assert explorer.unpinned.value == "" and explorer.views.titles["pins"] == "Pinned (2)"
    for left in ("Pinned (1)", "Pinned"):
        _, unpin = explorer.pins.children[0].children[2].children
        unpin.click()
        assert explorer.views.titles["pins"] == left
    assert "Pin" in explorer.unpinned.value


def test_a_pin_is_of_what_is_seen_and_not_of_where_the_point_has_moved(explorer, monkeypatch):
    seen = explorer.position
    monkeypatch.setattr(explorer.worker, "ask", lambda *a, **k: None) # no new video
    explorer.seed.value = seen.seed+7
    explorer.pin()
    assert explorer.position != seen and explorer.pins.children[-1].position == seen


# What is served

def test_a_page_in_store_waits_until_somebody_looks(studio, tmp_path):
    e = Explorer(studio, out=tmp_path, waits=True); assert e.worker.wait()
    assert not e.screen.data and not e.strips
    e.screen._handle_custom_msg(dict(drawn=True), []); e.worker.wait()
    assert e.screen.data and e.strips
    e.close(); e.worker.wait()


def test_only_the_first_page_is_made_ahead(studio, tmp_path):
    first, second = (explorer_page(studio, str(tmp_path), out=tmp_path/"out") for _ in range(2))
    assert first.worker.wait() and second.worker.wait() and first.screen.data and not second.screen.data and (tmp_path/"ready").exists()
    for e in (first, second): e.close(); e.worker.wait()


def test_a_page_is_ready_with_its_first_preview_and_whole_before_its_full_video(studio, tmp_path, monkeypatch):
    import sas_nb.explore.sights as sights
    told, render, maps = [], type(studio).render, sights._put_on_maps
    studio.kept.clear()
    def rendered(self, p=None, quick=False, watch=lambda share: None):
        told.append("preview" if quick else "full")
        return render(self, p, quick, watch)
    monkeypatch.setattr(type(studio), "render", rendered)
    monkeypatch.setattr(sights, "filmed", lambda info, place, dit: told.append(f"film {(tmp_path/'ready').exists()}") or filmed(info, place, dit))
    monkeypatch.setattr(sights, "_put_on_maps", lambda e: told.append("maps") or maps(e))
    e = explorer_page(studio, str(tmp_path), out=tmp_path/"out"); assert e.worker.wait() and not e.gaps
    assert told[:2] == ["preview", "film True"] and told.index("maps") < told.index("full") and "full" not in told[:told.index("maps")]
    assert json.loads((tmp_path/"ready").read_text()) == dict(note=studio.room.sentence) and e.screen.film
    e.close(); e.worker.wait()


def test_why_there_is_no_page_reaches_the_command(tmp_path):
    from sas_nb.explore.serve import _await_page
    assert 'role="alert"' in explorer_page(str(tmp_path/"nowhere"), str(tmp_path)).data
    with pytest.raises(UserError, match="nowhere"): _await_page(None, tmp_path, 0.)
    (tmp_path/"ready").unlink()
    assert _await_page(None, tmp_path, 0.) == ["The first video takes long. The page shows it as soon as it is there."]


@pytest.mark.parametrize("missing", ["voila", "ipykernel"])
def test_what_the_page_is_served_with_is_asked_for_and_missed_at_once(root, monkeypatch, missing):
    from sas_nb.explore import serve
    asked = (root/"settings.ini").read_text().split("explore_requirements =")[1].split("_requirements")[0]
    assert f"    {missing}>=" in asked
    find = serve.importlib.util.find_spec
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    with pytest.raises(UserError, match=f"the package {missing}, which is not installed: run"): serve._check_site({}, "127.0.0.1", 1)


def test_what_is_at_hand(zoo, tmp_path, monkeypatch):
    for i, (place, name) in enumerate({"out/demo/concept": "man-02", "explored/mix": "woman-00", "runs/many/concepts/000": "man-04", ".hidden/concept": "man-04"}.items()):
        zoo[name].save(tmp_path/place)
        os.utime(tmp_path/place/"concept.json", (i, i))
    (tmp_path/"out/other/concept").mkdir(parents=True)
    (tmp_path/"out/other/concept/concept.json").write_text('{"fingerprint": "another"}')
    monkeypatch.chdir(tmp_path)
    own, others = at_hand()
    assert own == [Path("runs/many/concepts/000"), Path("explored/mix"), Path("out/demo"), "zoo"] and others == [Path("out/other")]
    assert at_hand(most=1)[0] == [Path("runs/many/concepts/000"), "zoo"] and own_concepts("explored") == [Path("explored/mix")]


def test_what_may_not_be_read_or_is_gone_is_not_at_hand(tmp_path, monkeypatch):
    for place in ("locked", "gone", "kept"):
        (tmp_path/place/"concept").mkdir(parents=True)
        (tmp_path/place/"concept/concept.json").write_text("{}")
    stat, getmtime = os.stat, os.path.getmtime
    def refused(path, *rest, **how):
        if "locked" in Path(path).parts[:-1]: raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *rest, **how)
    def gone(path):
        if "gone" in Path(path).parts: raise FileNotFoundError(2, "No such file", str(path))
        return getmtime(path)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as m:
        m.setattr(os, "stat", refused)
        m.setattr(os.path, "getmtime", gone)
        assert own_concepts() == [Path("kept")] and at_hand() == (["zoo"], [Path("kept")])


def test_the_command_without_names_shows_what_is_at_hand(tmp_path, monkeypatch):
    from typer.testing import CliRunner
    from sas_nb import cli
    given = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sas_nb.explore.serve.serve", lambda concepts, browser, **kwargs: given.update(concepts=concepts))
    done = CliRunner().invoke(cli.app, ["explore"])
    assert done.exit_code == 0 and given == dict(concepts=["zoo"]) and "zoo" in done.output


def test_words_name_clothes_only_where_it_was_measured_to_help(explorer, monkeypatch):
    s = explorer.studio
    one, other = [n for n in s.names if n != AVERAGE][:2]
    caption = "a [v] woman in a red shirt in a park"
    monkeypatch.setitem(s.atlas.members[s.atlas.index(one)].state()["info"], "appearance", caption)
    where = s.maps["appearance"]
    near = [Position(one, other, look_by=(where.step*k, 0.)) for k in (2, -2)]  # one of them may lie beyond the edge
    named, home, mixed = Position(one, other), Position(one, one), next(p for p in near if len([*where.shares(p)]) > 1)
    assert caption not in s.own_prompt(named)  # nothing was measured of these
    for known, says in ((dict(carried=False), True), (dict(carried=True), False)):
        monkeypatch.setattr(s, "mixing", known)
        assert s.own_prompt(named).startswith(f"{caption}.") is says
        assert caption not in s.own_prompt(home) and caption not in s.own_prompt(mixed) and caption not in s.own_prompt(Position(one, AVERAGE, look_along=(1.,)))


def test_the_best_measured_pair_is_the_first_example(explorer, monkeypatch):
    s = explorer.studio
    one, other = [n for n in s.names if n != AVERAGE][:2]
    monkeypatch.setattr(s, "mixing", dict(best=[["nobody", one], [other, one]]))
    (label, place), *others = examples_of(s, explorer.chips)
    assert label == f"{other} dances like {one}" and (place.look, place.dance) == (other, one)
    assert all((p.look, p.dance) == (other, other) and p.prompt for _, p in others)


def test_a_pair_chosen_by_eye_comes_before_what_was_measured(zoo):
    look, dance = SEEN[0]
    chosen = load_zoo("zoo", [look, dance], zoo["woman-00"].dit)
    s = Studio(chosen | {name: zoo[name] for name in ("woman-00", "man-02")}, **SMALL)
    s.mixing = dict(best=[["woman-00", "man-02"]])
    assert examples_of(s, {})[0][0] == f"{look} dances like {dance}"


def test_a_look_with_anothers_dance_is_brought_out_as_was_measured(explorer, monkeypatch):
    s = explorer.studio
    one, other = [n for n in s.names if n != AVERAGE][:2]
    def norms(p): return (lambda w: [sum(t.norm()**2 for k, t in w.items() if k.endswith(kind))**.5 for kind in ("A", "B1", "B2")])(s.concept(p).weights)
    def times(p):  # of the plain sum
        with monkeypatch.context() as m:
            m.setattr(s, "mixing", {})
            plain = norms(p)
        return [float(a/b) for a, b in zip(norms(p), plain)]
    monkeypatch.setattr(s, "mixing", dict(strengths=dict(early=1., appearance=[.8, 9.], motion=[1.5, 9.])))
    assert times(Position(one, one)) == times(Position(one, one, look_along=(2.,))) == [1, 1, 1]
    assert times(Position(one, other)) == pytest.approx([1, .8, 1.5]) == times(Position(AVERAGE, other))
    where = s.maps["appearance"]
    between = next(p for k in (2, -2) if one in (where.shares(p := Position(one, one, look_by=(where.step*k, 0.)))) and len(where.shares(p)) > 1)
    share = where.shares(between)[one]
    assert times(between) == pytest.approx([1, share + .8*(1-share), share + 1.5*(1-share)])
