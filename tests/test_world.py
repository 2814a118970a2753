"""The world of 64 pixels keeps 02_world's promises, fills the picture, and shows who someone is."""
import re
from dataclasses import replace
import numpy as np, pytest
from sas_nb.files import UserError
from sas_nb.lab import draw as world, draw as world
from sas_nb.lab.draw import *
from sas_nb.lab.world import _camera, body_of

ME = heldout_spec(6)
TIMES = np.arange(17)/12


def someone(seed, **fixed): return random_person(np.random.default_rng(seed), **fixed)
def alone(person, **stage): return Spec((person,), **stage)
def drawn(spec, fps=12., frames=17): return world._draw(spec, np.arange(frames)/fps, 64, only=0)[..., 3] > 127


def test_it_can_take_the_place_of_world():
    assert set(world.__all__) | {"random_identity"} == set(world.__all__)
    assert vocabulary() == world.vocabulary() and caption is world.caption and edit is world.edit
    assert callable(world._draw) and callable(_camera), "others ask for them"
    assert Truth._fields == (*world.Truth._fields, "heads")


def test_same_seed_same_clip():
    assert random_spec(5) == random_spec(5) and hash(random_spec(5)) == hash(random_spec(5))
    assert (render_array(random_spec(5)) == render_array(random_spec(5))).all()
    assert len({random_spec(s) for s in range(200)}) == 200


def test_captions_are_of_the_old_vocabulary():
    used = set()
    for s in range(500):
        for rng in (None, np.random.default_rng(s)): used |= set(re.findall(r"[.,]|[^\s.,]+", str(caption(random_spec(s), rng))))
    assert used == set(world.vocabulary())


def test_people_without_words_share_a_caption():
    assert len({caption(edit(ME, identity=p.identity, gait=p.gait)) for n in range(20) for p in heldout_spec(n).subjects}) == 1


PLAINLY = dict(zip(IDENTITY, [.5]*len(IDENTITY)), cheeks=.9, hair_cut=.88, glasses=0., pattern=.2, smile=.5, beard=0.)
CHOICES = ("cheeks", "hair_cut", "hair_colour", "beard", "glasses", "pattern", "pattern_colour", "sleeves", "trouser_legs", "shoes", "iris")


@pytest.mark.parametrize("name", IDENTITY)
def test_every_number_of_an_identity_shows(name):
    frames = [render_array(alone(Person(identity=tuple({**PLAINLY, name: value}.values()))), 1).astype(int) for value in (.05, .5, .95)]
    changed = [(np.abs(a - b).max(-1) > 16).sum() for a, b in zip(frames, frames[1:])]
    assert max(changed) >= 3, changed


@pytest.mark.parametrize("name, words", dict(shirt=COLOURS, trousers=COLOURS, hat=HATS, held=HELD, kind=KINDS).items())
def test_every_word_of_a_person_shows(name, words):
    frames = [render_array(edit(ME, **{name: word}), 1).astype(int) for word in words]
    for k, a in enumerate(frames):
        for b in frames[:k]: assert (np.abs(a - b).max(-1) > 24).sum() > 20


@pytest.mark.parametrize("name, words", dict(scene=SCENES, light=LIGHTS).items())
def test_every_word_of_a_scene_shows(name, words):
    frames = [render_array(edit(ME, **{name: word}), 1).astype(int) for word in words]
    for k, a in enumerate(frames):
        for b in frames[:k]: assert (np.abs(a - b).max(-1) > 24).mean() > .3


def test_cameras_move_and_things_too():
    still, zoomed, panned = (render_array(edit(ME, camera=c, strength=0.)) for c in CAMERAS)
    assert (still == still[0]).all() and (zoomed[0] != zoomed[16]).any() and (panned[0] != panned[16]).any()
    things = [render_array(Spec((Thing(kind),)), 9) for kind in THINGS]
    assert all((t[0] != t[8]).any() for t in things) and len({t.tobytes() for t in things}) == len(THINGS)
    assert all((f == f[0]).all() for kind in THINGS for f in [render_array(Spec((Thing(kind, strength=0.),)), 5)])


@pytest.mark.parametrize("motion", NAMED)
def test_movements_are_told_apart_in_half_a_second(motion):
    "Six frames, each movement at its own pace, wherever in its cycle it begins: the nearest other one is far off."
    def swing(name, phase): return joints(Person(motion=name, gait=replace(NAMED[name], phase=phase)), np.arange(6)/12)
    phases = np.arange(8)/8
    for phase in phases:
        mine = swing(motion, phase)
        for other in NAMED:
            if other != motion: assert min(np.abs(mine - swing(other, q)).max(-1).max(0).max() for q in phases) > 5, other


@pytest.mark.parametrize("seed", range(12))
def test_a_figure_fills_the_height(seed):
    rows = np.flatnonzero(drawn(alone(someone(seed, motion="standing", hat="none", held="none", size=1.)), frames=1)[0].any(1))
    assert .8 <= (rows[-1] - rows[0] + 1)/64 <= .95
    r = body_of(someone(seed, size=1.))["head"]
    assert .26 < 2*r/(rows[-1] - rows[0] + 1) < .38


@pytest.mark.parametrize("motion", MOTIONS)
def test_nobody_leaves_the_picture(motion):
    for seed in range(4):
        for hat in ("none", "tophat"):
            inside = drawn(alone(someone(seed, motion=motion, hat=hat, held="none")))
            edges = np.stack([inside[:, 0].sum(-1), inside[..., 0].sum(-1), inside[..., -1].sum(-1)])
            assert edges.max() <= 4, (seed, hat)


def test_feet_never_sink():
    for s in range(40): assert joints(someone(s), np.arange(33)/16)[:, [11, 14], 1].max() <= world.GROUND + 1e-9


@pytest.mark.parametrize("motion", MOTIONS)
def test_strength_zero_freezes_the_body(motion):
    person = someone(1, motion=motion, hat="none", held="none", strength=0.)
    frames = render_array(alone(person), 6)
    assert (frames == frames[0]).all() and (render_array(alone(replace(person, strength=1.)), 6) != frames).any()


def test_heads_of_two_do_not_overlap():
    for seed in range(60):
        a, b = truth(random_spec(seed, people=2, things=0, camera="static"), 17, 12.).heads
        apart = np.maximum(a[:, :2] - b[:, 2:], b[:, :2] - a[:, 2:]).max(-1)
        assert apart.min() > -1, seed


@pytest.mark.parametrize("seed", range(6))
def test_joints_lie_on_the_figure(seed):
    known = truth(alone(someone(seed, motion="dancing")))
    for t, joints_now in enumerate(known.joints[0]):
        for name, (x, y) in zip(JOINTS, joints_now):
            if 1 <= x <= 62 and 1 <= y <= 62: assert known.masks[0, t, int(y)-1:int(y)+2, int(x)-1:int(x)+2].any(), (t, name)


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_head_box_holds_the_face(camera):
    "What changes with eyes, brows, nose and mouth lies in the box, and the box is as large as the face."
    person = replace(ME.subjects[0], identity=tuple(PLAINLY.values()))
    other = replace(person, identity=tuple({**PLAINLY, "eyes": 1., "brows": 1., "mouth": 1., "nose": 1., "skin": 1.}.values()), strength=1.)
    bald = [replace(p, identity=tuple({**dict(zip(IDENTITY, p.identity)), "hair_cut": 0., "skin": .5}.values())) for p in (person, other)]
    a, b = (render_array(alone(p, camera=camera), 9).astype(int) for p in bald)
    heads = truth(alone(bald[0], camera=camera), 9).heads[0]
    for t, (x0, y0, x1, y1) in enumerate(heads):
        ys, xs = np.nonzero(np.abs(a[t] - b[t]).max(-1) > 12)
        assert len(xs) and x0-1 <= xs.min() and xs.max() <= x1 and y0-1 <= ys.min() and ys.max() <= y1
        assert ((x0+x1)/2, (y0+y1)/2) == pytest.approx(tuple(truth(alone(bald[0], camera=camera), 9).joints[0][t, 0]))


def test_truth_scales_and_knows_everything():
    two = random_spec(4, people=2, things=0)
    known, large = truth(two, 3), truth(two, 3, size=128)
    assert [i.shape for i in known.identity] == [(len(IDENTITY),)]*2 and [h.shape for h in known.heads] == [(3, 4)]*2
    assert np.allclose(known.heads[1]*2, large.heads[1]) and np.allclose(known.joints[0]*2, large.joints[0])
    assert known.masks.sum(0).max() == 1 and known.attributes["subjects"][1]["shirt"] == two.subjects[1].shirt


def test_a_named_motion_brings_the_movement_of_this_world():
    assert edit(ME, motion="walking").subjects[0].gait == NAMED["walking"] != world.NAMED["walking"]
    assert world.edit(world.heldout_spec(0), motion="walking").subjects[0].gait == world.NAMED["walking"]


def test_heldout_concepts_are_plain_and_never_met():
    met = {p.identity for s in range(300) for p in random_spec(s).subjects if isinstance(p, Person)}
    for n in range(50):
        p, = heldout_spec(n).subjects
        assert p.identity not in met and (p.motion, p.hat, p.held) == ("dancing", "none", "none")
    for wish in (lambda: random_spec(HELDOUT), lambda: heldout_spec(-1), lambda: random_identity(np.random.default_rng(0), "child")):
        with pytest.raises(UserError): wish()


def test_men_and_women_differ_in_their_odds_only():
    bearded = {k: np.mean([dict(zip(IDENTITY, random_identity(np.random.default_rng(s), k)))["beard"] > 1/6 for s in range(400)]) for k in KINDS}
    assert .4 < bearded["man"] < .7 and 0 < bearded["woman"] < .1


def test_example_clips_are_drawn_as_documented(root):
    import make_clips
    folder = root / "data" / "next"
    for name, spec in make_clips.LARGE.items():
        assert (folder / "clips" / f"{name}.mp4").stat().st_size < 200*1024
        assert str(caption(spec)) in (folder / "README.md").read_text(encoding="utf-8")
