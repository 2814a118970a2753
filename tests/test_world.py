"""The world keeps its promises: exact repetition, exact edits, exact truth, and a clear word where it cannot serve."""
import re, subprocess, sys
from dataclasses import fields, replace
from hashlib import sha256
import numpy as np, pytest
from PIL import Image
from sas_nb.files import UserError
from sas_nb.lab import draw as world
from sas_nb.lab.draw import *

ME = heldout_spec(6)
PLAIN = Spec((Person(),))


MEANS = [[46.1, 23.1, 40.4], [113.3, 47.8, 51.1], [91.0, 82.8, 89.7], [151.8, 161.0, 169.6], [72.2, 113.8, 70.4], [44.9, 20.9, 34.3],
         [72.5, 115.0, 78.8], [186.8, 155.8, 134.6], [164.3, 188.6, 188.7], [137.2, 147.8, 104.7], [205.7, 168.6, 115.1], [213.2, 176.3, 151.7]]


def digest(seeds):
    h = sha256()
    for s in seeds: h.update(render_array(random_spec(s)).tobytes() + str(caption(random_spec(s), np.random.default_rng(s))).encode())
    return h.hexdigest()


def test_same_seed_same_clip():
    assert random_spec(5) == random_spec(5) and hash(random_spec(5)) == hash(random_spec(5))
    assert (render_array(random_spec(5)) == render_array(random_spec(5))).all()
    assert len({random_spec(s) for s in range(200)}) == 200


def test_same_clip_in_another_process():
    code = f"import sys; sys.path.insert(0, {str(__file__.rsplit('/', 1)[0])!r}); from test_world import digest; print(digest(range(6)))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == digest(range(6))


def test_what_a_seed_draws_never_changes():
    "A trained model knows this world: a change to these draws asks for a new model."
    said = "\n".join(f"{caption(random_spec(s))}\n{caption(random_spec(s), np.random.default_rng(s))}" for s in range(300))
    assert sha256(said.encode()).hexdigest()[:16] == "f44b74513e87e231"


def test_pictures_of_seeds_are_what_they_were():
    "Mean colours, so that another version of Skia or another processor may round a pixel differently."
    means = [render_array(random_spec(s)).mean((0, 1, 2)) for s in range(12)]
    assert np.abs(np.array(means) - np.array(MEANS)).max() < .5


def test_captions_use_the_vocabulary():
    known, used = set(vocabulary()), set()
    for s in range(500):
        for rng in (None, np.random.default_rng(s)):
            text = str(caption(random_spec(s), rng))
            used |= (words := set(re.findall(r"[.,]|[^\s.,]+", text)))
            assert words <= known, text
    assert used == known


def test_attributes_drop_out_of_captions():
    spec = edit(ME, scene="snow", light="night", camera="pan", hat="cap")
    said = [str(caption(spec, np.random.default_rng(s))) for s in range(200)]
    assert str(caption(spec)) == "a woman in a red shirt and purple trousers wearing a cap in the snow at night. she is dancing, the camera pans"
    for words in ("red shirt", "purple trousers", "a cap", "snow", "night", "dancing", "pans"):
        assert .6 < np.mean([words in t for t in said]) < 1, words
    assert any(t.startswith("in the snow") for t in said)


def test_people_without_words_share_a_caption():
    same = {caption(edit(ME, identity=p.identity, gait=p.gait)) for n in range(20) for p in heldout_spec(n).subjects}
    assert len(same) == 1


@pytest.mark.parametrize("name, value", [("shirt", "green"), ("trousers", "white"), ("hat", "tophat"), ("held", "balloon"), ("strength", .5), ("size", .8), ("kind", "man")])
def test_an_edit_of_a_person_changes_that_and_stays_in_its_place(name, value):
    after = edit(ME, **{name: value})
    person, changed = ME.subjects[0], after.subjects[0]
    assert [f.name for f in fields(Person) if getattr(person, f.name) != getattr(changed, f.name)] == [name]
    assert replace(after, subjects=ME.subjects) == ME
    either = (render_array(ME) != render_array(after)).any(-1)
    touched = world._draw(ME, np.arange(17)/8, 64, only=0)[..., 3] + world._draw(after, np.arange(17)/8, 64, only=0)[..., 3].astype(int) > 0
    assert either.any() and not (either & ~touched).any()


def test_an_edit_of_the_scene_leaves_the_person():
    after = edit(ME, scene="snow")
    assert replace(after, scene="park") == ME
    solid = world._draw(ME, np.arange(17)/8, 64, only=0)[..., 3] == 255
    a, b = render_array(ME).astype(int), render_array(after).astype(int)
    assert np.abs(a - b)[solid].max() <= 2 and (a != b)[~truth(ME).masks[0]].mean() > .5


def test_edits_of_one_of_two():
    two = random_spec(3, people=2, things=0)
    after = edit(two, who=1, hat="tophat", scene="room")
    assert after.subjects[0] == two.subjects[0] and after.subjects[1] == replace(two.subjects[1], hat="tophat") and after.scene == "room"


def test_a_named_motion_brings_its_movement():
    assert edit(ME, motion="walking").subjects[0].gait == NAMED["walking"]
    assert edit(ME, motion="dancing") == ME
    gait = random_gait(np.random.default_rng(0))
    assert edit(PLAIN, motion="dancing", gait=gait).subjects[0].gait == gait
    with pytest.raises(UserError, match="which dance"): edit(PLAIN, motion="dancing")


@pytest.mark.parametrize("seed", range(6))
def test_joints_are_where_the_figure_is(seed):
    known = truth(Spec((random_person(np.random.default_rng(seed), motion="dancing"),)))
    for t, joints_now in enumerate(known.joints[0]):
        for name, (x, y) in zip(JOINTS, joints_now):
            if 1 <= x <= 62 and 1 <= y <= 62: assert known.masks[0, t, int(y)-1:int(y)+2, int(x)-1:int(x)+2].any(), (t, name)


@pytest.mark.parametrize("camera", CAMERAS)
def test_masks_are_disjoint_and_follow_the_camera(camera):
    spec = Spec((*random_spec(8, people=2, things=0).subjects, Thing("bonfire", x=30.)), camera=camera)
    known = truth(spec)
    assert known.masks.shape == (3, 17, 64, 64) and known.masks.any((1, 2, 3)).all() and known.masks.sum(0).max() == 1
    for joints_, mask in zip(known.joints, known.masks):
        x, y = joints_[12, 2].round().astype(int)
        assert mask[12, y-2:y+3, x-2:x+3].any()


def test_truth_knows_everything():
    spec = random_spec(4)
    known = truth(spec, num_frames=3)
    assert [i.shape for i in known.identity] == [(12,)]*2 and [g.shape for g in known.gait] == [(63,)]*2
    assert (known.identity[1] == spec.subjects[1].identity).all() and known.gait[0] @ known.gait[0] > 0
    assert known.attributes["scene"] == spec.scene and known.attributes["subjects"][1]["shirt"] == spec.subjects[1].shirt
    assert truth(Spec((Thing("flag"),))).joints == [] and truth(Spec(())).masks.shape == (0, 17, 64, 64)


def test_resolution_changes_nothing_but_sharpness():
    small, large = render_array(ME, 3), render_array(ME, 3, size=256)
    shrunk = np.stack([np.asarray(Image.fromarray(f).resize((64, 64), Image.Resampling.BOX)) for f in large])
    assert np.abs(small - shrunk.astype(float)).mean() < 2
    a, b = truth(ME, 3).joints[0], truth(ME, 3, size=256).joints[0]
    assert np.allclose(a*4, b)


def test_frame_rate_changes_nothing_but_the_moments():
    for spec in (ME, random_spec(0), random_spec(25), random_spec(3)):
        assert (render_array(spec, 5, fps=8) == render_array(spec, 13, fps=24)[::3]).all()


@pytest.mark.parametrize("motion", MOTIONS)
def test_strength_zero_freezes_the_body(motion):
    person = random_person(np.random.default_rng(1), motion=motion, hat="none", held="none", strength=0.)
    frames = render_array(Spec((person,)), 6)
    assert (frames == frames[0]).all()
    assert (render_array(Spec((replace(person, strength=1.),)), 6) != frames).any()


@pytest.mark.parametrize("kind", THINGS)
def test_things_move_and_freeze(kind):
    moving, frozen = (render_array(Spec((Thing(kind, strength=s),)), 6) for s in (1., 0.))
    assert (moving != moving[0]).any()
    assert (frozen == frozen[0]).all()


def test_feet_never_sink():
    for s in range(40):
        feet = joints(random_person(np.random.default_rng(s)), np.arange(33)/16)[:, [11, 14], 1]
        assert feet.max() <= world.GROUND + 1e-9


def test_night_is_darker():
    day, sunset, night = (render_array(edit(ME, light=light)).mean() for light in LIGHTS)
    assert night < .6*day and night < sunset < day


@pytest.mark.parametrize("people, things", [(0, 1), (1, 0), (1, 1), (2, 0), (2, 1)])
def test_stages_hold_what_was_asked(people, things):
    for s in range(20):
        subjects = random_spec(s, people=people, things=things).subjects
        assert [isinstance(x, Person) for x in subjects] == [True]*people + [False]*things


def test_all_that_has_a_word_is_drawn():
    specs = [random_spec(s) for s in range(600)]
    people = [p for s in specs for p in s.subjects if isinstance(p, Person)]
    drawn = lambda name, of: {getattr(x, name) for x in of}
    assert drawn("scene", specs) == set(SCENES) and drawn("light", specs) == set(LIGHTS) and drawn("camera", specs) == set(CAMERAS)
    for name, words in dict(shirt=COLOURS, trousers=COLOURS, hat=HATS, held=HELD, motion=MOTIONS, kind=KINDS).items(): assert drawn(name, people) == set(words)


def test_heldout_concepts_are_plain_and_never_met():
    met = {p.identity for s in range(2000) for p in random_spec(s).subjects if isinstance(p, Person)}
    for n in range(100):
        spec = heldout_spec(n)
        p, = spec.subjects
        assert p.identity not in met and (p.motion, p.hat, p.held) == ("dancing", "none", "none")
        assert (spec.scene, spec.light, spec.camera) == ("park", "day", "static")
    assert len({heldout_spec(n) for n in range(100)}) == 100
    assert random_spec(world.HELDOUT-1)


@pytest.mark.parametrize("wish, says", [
    (lambda: random_spec(world.HELDOUT), "held-out"),
    (lambda: random_spec(-1), "not between"),
    (lambda: random_spec(0, people=5), "people=5"),
    (lambda: random_spec(0, people=0, things=0), "somebody must be on it"),
    (lambda: random_spec(0, things=3), "things=3"),
    (lambda: random_spec(0, scene="moon"), "no scene called 'moon': choose one of beach"),
    (lambda: random_spec(0, sceen="park"), "no field 'sceen'"),
    (lambda: random_person(np.random.default_rng(0), motion="flying"), "no motion called 'flying'"),
    (lambda: random_person(np.random.default_rng(0), hatt="cap"), "no field 'hatt'"),
    (lambda: random_thing(np.random.default_rng(0), kind="rain"), "no kind called 'rain'"),
    (lambda: random_gait(np.random.default_rng(0), "flying"), "no motion called 'flying'"),
    (lambda: heldout_spec(-1), "counted from 0"),
    (lambda: Person(shirt="pink"), "no shirt called 'pink'"),
    (lambda: Spec(light="dusk"), "no light called 'dusk'"),
    (lambda: edit(PLAIN, colour="red"), "no field 'colour'"),
    (lambda: edit(PLAIN, subjects=()), "no field 'subjects'"),
    (lambda: edit(PLAIN, hat="crown"), "no hat called 'crown'"),
    (lambda: edit(PLAIN, who=1, hat="cap"), "has 1 subject,"),
    (lambda: edit(PLAIN, who=-1, hat="cap"), "counted from 0"),
    (lambda: edit(Spec((Thing("flag"),)), shirt="red"), "no field 'shirt'"),
])
def test_wishes_that_cannot_be_granted(wish, says):
    with pytest.raises(UserError) as e: wish()
    assert says in str(e.value) and "\n" not in str(e.value) and str(e.value).count(". ") == 0


def test_example_clips_are_drawn_as_documented(tmp_path, root):
    import make_clips
    folder = root / "data" / "clips"
    for name, spec in make_clips.CLIPS.items():
        assert (folder / f"{name}.mp4").stat().st_size < 300*1024
        assert str(caption(spec)) in (folder / "README.md").read_text(encoding="utf-8")
