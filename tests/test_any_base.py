"The explorer over concepts of a base that is like no other: other sizes, two experts, parts in memory in turn, slow."
from dataclasses import replace
import json, threading
from io import BytesIO
import pytest, torch
import wan_folder
from PIL import Image
from sas_nb import VideoDiT
from sas_nb.cards import Card
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.explore import page
from sas_nb.explore.maps import Position
from sas_nb.explore.page import Explorer
from sas_nb.explore.renderer import Studio
from sas_nb.explore.room import Room, room_for
from sas_nb.explore.worker import Cancelled
from sas_nb.files import UserError
from sas_nb.learning import learn
from sas_nb.memory import Memory
from sas_nb.progress import said_seconds
from sas_nb.recipe import Recipe, Run

T, H, W = 9, 48, 80
FEW = Recipe.unregularised().with_(both=dict(steps=1, batch=1), rank=2)
APART = Memory(apart=True, checkpointing=True, at_once=1)


def written(folder, kind):
    wan_folder.write(folder, kind)
    (folder/"sas_nb.json").write_text(json.dumps(dict(steps=6, fps=8., num_frames=T, height=H, width=W)))
    return folder


@pytest.fixture(scope="module", params=[("plain", None), ("experts", APART)], ids=["plain", "experts, apart"])
def saved(request, tmp_path_factory, own_cache):
    "A concept's folder, that of its base, and how the base is to be fitted."
    kind, memory = request.param
    home = tmp_path_factory.mktemp(kind)
    base = written(home/"base", kind)
    learn(Clip(torch.rand(T, 3, H, W), 8.), ("a [v] ball on a beach", "it is [u] rolling"), str(base), FEW, Run(home/"run", progress=False))
    return home/"run", base, memory


def concept_of(saved, memory=None): return Concept.load(saved[0], VideoDiT.load(saved[1], "cpu", memory=memory))


@pytest.fixture(scope="module")
def studio(saved): return Studio(concept_of(saved, saved[2]), steps=4, preview=2)


def test_each_step_is_told_and_stops(studio):
    "Parts that come and go, passes in pieces and a second expert are no steps."
    shares = []
    studio.render(quick=True, watch=shares.append)
    assert shares == [0, .5, 1]
    def stop(share):
        if share >= .5: raise Cancelled
    for quick, seed in ((False, 0), (True, 5)):
        with pytest.raises(Cancelled): studio.render(Position("concept 1", "concept 1", seed=seed), quick, stop)
        assert not studio.ready(Position("concept 1", "concept 1", seed=seed), quick)
    assert not studio.dit.adapted
    assert 0 < studio.seconds(quick=True) < studio.seconds()


def test_pictures_have_the_size_and_the_pace_of_the_clip(studio):
    preview = Image.open(BytesIO(studio.render(quick=True)))
    preview.load()
    assert preview.size == (W, H) and preview.n_frames == T and preview.info["duration"] == 125
    face = Image.open(BytesIO(studio.face("concept 1", side=32))).convert("RGB")
    preview.seek(T//2)
    left = (W-H)/2
    middle = preview.convert("RGB").crop((left, 0, left+H, H)).resize((32, 32), Image.Resampling.BICUBIC)
    apart = sum(abs(a-b) for x, y in zip(face.getdata(), middle.getdata()) for a, b in zip(x, y))/32**2/3
    assert face.size == (32, 32) and apart < 12  # a square out of the middle, and not the whole squeezed


def test_parts_that_were_read_in_turn_stay(saved, monkeypatch):
    studio = Studio(concept_of(saved, APART), steps=2, preview=1)
    studio.room = Room(APART, together=True)
    read, part = [], studio.dit.checkpoint.part
    monkeypatch.setattr(studio.dit.checkpoint, "part", lambda name, *how: (read.append(name), part(name, *how))[1])
    for seed in range(3): studio.render(Position("concept 1", "concept 1", seed=seed), True)
    assert sorted(set(read)) == sorted(read) and {"text_encoder", "vae", "transformer"} <= set(read)


# Memory, said beforehand

SMALL = Card("Toy", 1., .001, .001, 1.)


def test_what_it_needs_is_said_before_anything_is_read(saved, monkeypatch):
    from sas_nb.explore import room
    concept = concept_of(saved)
    assert "need less than" in room_for(concept, 6, 2).sentence
    monkeypatch.setattr(room, "at_most", lambda *args: 1e12)  # as of a large base: it is rehearsed
    found = room_for(concept, 6, 2, card=SMALL)
    assert f"Videos of {T} frames of {H}x{W} by {saved[1].name} need 0.8 GiB of Toy, which has 1.0, and 1.5 GiB of the machine's own memory" in found.sentence
    assert "It takes a preview about" in found.sentence and "a full video about" in found.sentence
    assert found.memory == Memory() and not found.together
    assert f"of 5 frames of {H}x{W}" in room_for(concept, 6, 2, num_frames=5, card=SMALL).sentence
    with pytest.raises(UserError, match="which has 0.5, and .*: ask for fewer frames or a smaller size"):
        room_for(concept, 6, 2, card=replace(SMALL, gib=.5))
    assert not concept.dit.loaded - {"tokenizer", "scheduler"}


def test_somebody_elses_choice_is_kept(saved, monkeypatch):
    from sas_nb.explore import room
    monkeypatch.setattr(room, "at_most", lambda *args: 1e12)
    concept = concept_of(saved, APART)
    found = room_for(concept, 6, 2, card=replace(SMALL, gib=9.))
    assert found.memory == APART and found.together
    assert not room_for(concept, 6, 2, card=SMALL).together


@pytest.mark.parametrize("seconds, words", [(.1, "about 1 s"), (89, "about 89 s"), (200, "about 3 minutes"), (5399, "about 90 minutes"), (7200, "about 2.0 hours")])
def test_how_long_in_words(seconds, words): assert said_seconds(seconds) == words


# The page

@pytest.fixture
def explorer(studio, tmp_path):
    e = Explorer(studio, out=tmp_path, faces=0)
    assert e.worker.wait()
    yield e
    e.close(); e.worker.wait()


def notes(e):
    seen = []
    e.screen.observe(lambda change: seen.append(change.new), "note")
    return seen


def slow(monkeypatch, studio, step=60.):
    "As on a base whose steps take a minute."
    monkeypatch.setattr(Studio, "seconds", lambda self, quick=False: step*(self.preview if quick else self.steps))


def test_a_full_video_that_takes_long_is_made_when_asked_for(explorer, monkeypatch):
    e = explorer
    assert e.screen.film and e.buttons["full"].layout.display == "none"
    slow(monkeypatch, e.studio)
    e.seed.value = 3; assert e.worker.wait()
    assert not e.screen.film and e.screen.note.startswith("preview") and not e.studio.ready(e.position)
    assert (e.buttons["full"].layout.display, e.buttons["full"].description) == ("", "Full video, about 4 minutes")
    e.buttons["full"].click(); assert e.worker.wait()
    assert e.screen.film and e.screen.note.startswith("full video") and e.buttons["full"].layout.display == "none"
    e.seed.value = 4; assert e.worker.wait()
    e.seed.value = 3; assert e.worker.wait()
    assert e.screen.film  # what is kept is shown at once


def test_nothing_slow_is_made_behind_ones_back(explorer, monkeypatch):
    slow(monkeypatch, explorer.studio)
    asked = []
    monkeypatch.setattr(explorer.studio, "try_sliders", lambda *args: asked.append("sliders"))
    explorer.views.chosen = "maps"; assert explorer.worker.wait()
    assert not asked


def test_who_waits_is_told_for_how_long(explorer, monkeypatch):
    e, clock = explorer, [0.]
    monkeypatch.setattr(page, "time", type("T", (), dict(perf_counter=lambda: clock[0])))
    seen = notes(e)
    def render(p, quick, watch):
        for share in (0, .25, .5, .75, 1):
            watch(share)
            clock[0] += 60
        return b""
    with monkeypatch.context() as m:
        m.setattr(e.studio, "render", render)
        e.seed.value = 9; assert e.worker.wait()
    assert [n for n in seen if n.startswith("making a preview:")] == [f"making a preview: {x}" for x in ("about 3 minutes left", "about 2 minutes left", "about 60 s left", "decoding")]


def test_before_the_first_step_the_page_says_what_it_reads(saved, tmp_path):
    e = Explorer(Studio(concept_of(saved), steps=2, preview=1), out=tmp_path, faces=0, waits=True)
    assert e.screen.note == e.studio.room.sentence and not e.studio.dit.loaded & {"transformer", "vae"}
    seen = notes(e)
    e.refresh(); assert e.worker.wait()
    assert seen[0] == f"reading the model. {e.studio.room.sentence}" and seen[-1].startswith("full video")
    e.close(); e.worker.wait()


@pytest.mark.parametrize("step, gives_way", [(60., True), (.1, False)])
def test_a_long_preview_gives_way_to_the_next(explorer, monkeypatch, step, gives_way):
    e, begun, go_on, ended = explorer, threading.Event(), threading.Event(), []
    slow(monkeypatch, e.studio, step)
    def render(p, quick, watch):
        if p.seed != 70: return b""
        begun.set(); go_on.wait(5)
        watch(.5)
        ended.append(p.seed)
        return b""
    with monkeypatch.context() as m:
        m.setattr(e.studio, "render", render)
        e.seed.value = 70; assert begun.wait(5)
        e.seed.value = 71; go_on.set(); assert e.worker.wait()
    assert ended == ([] if gives_way else [70])


def test_stop_says_that_it_heard(explorer, monkeypatch):
    e, begun, go_on = explorer, threading.Event(), threading.Event()
    with monkeypatch.context() as m:
        m.setattr(e.studio, "render", lambda p, quick, watch: (watch(0), begun.set(), go_on.wait(5), watch(.5)))
        e.seed.value = 80; assert begun.wait(5)
        e.buttons["cancel"].click()
        assert e.screen.note == "stopping after this step"
        go_on.set(); assert e.worker.wait()
    assert e.screen.note == "stopped" and e.screen.progress == -1


def test_a_large_vocabulary_is_listed_once(studio, monkeypatch):
    from sas_nb.explore import renderer
    counted = []
    monkeypatch.setattr(renderer, "known_words", lambda dit: counted.append(1) or ["[v]"])
    studio.known.pop("words", None)
    assert studio.words == studio.words == ["[v]"] and len(counted) == 1
    studio.known.pop("words")
