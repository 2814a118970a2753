"""Prompts: parsed once, checked once."""
import pickle
from dataclasses import FrozenInstanceError
import pytest
from sas_nb.explore.prompts import sentence
from sas_nb.files import UserError
from sas_nb.prompt import checked_prompts, Prompt, Prompts
from sas_nb.stages import set_caption

LOOK, MOVE = "a [v] woman in a red shirt in a park", "she is [u] dancing"


@pytest.mark.parametrize("text, plain, placeholders, places", [
    ("a [v] man", "a man", ("[v]",), (2,)),
    ("[v] woman, [u] dancing", "woman, dancing", ("[v]", "[u]"), (0, 11)),
    ("[v][u]", "", ("[v]", "[u]"), (0, 3)),
    ("a man [v], here", "a man, here", ("[v]",), (6,)),
    ("[u] then [v] then [u]", "then then", ("[u]", "[v]", "[u]"), (0, 9, 18)),
    ("  a\tman \n in  a park ", "a man in a park", (), ()),
    ("", "", (), ()),
    ("[vu] and [12] and v", "[vu] and [12] and v", (), ()),
    ("ein [v] Mädchen 舞", "ein Mädchen 舞", ("[v]",), (4,)),
])
def test_parts_of_a_prompt(text, plain, placeholders, places):
    p = Prompt(text)
    assert (p.text, p.plain, p.placeholders, p.places) == (text, plain, placeholders, places)
    assert all(text[i:i+3] == w for i, w in zip(p.places, p.placeholders))


def test_a_movement_without_a_word():
    "`[u]` may stand alone, and says so."
    pair = Prompts("a [v] man in a park", "[u]")
    assert (pair.both.text, pair.both.plain) == ("a [v] man in a park. [u]", "a man in a park.")
    assert "`[u]` may stand alone" in Prompts.__doc__


@pytest.mark.parametrize("text, says", [
    ("a [V] man", "has '[V]' where the new word [v] is meant: write 'a [v] man'"), ("a (v) man", "write 'a [v] man'"), ("a {V } man", "write 'a [v] man'"), ("he is <u> up", "write 'he is [u] up'"),
    ("a [v] (u) man", "has '(u)' where the new word [u]"), ("a [w] man", "placeholder [w], and only [v] and [u]"), ("a [v] [X] man", "placeholder [X]"),
    (None, "a text, and this is None"), (3, "a text"), (b"a man", "a text"), (["a man"], "a text"), ({}, "a text")])
def test_refused(text, says):
    with pytest.raises(UserError) as e: Prompt(text)
    assert says in str(e.value)


def test_a_prompt_is_a_value():
    p = Prompt(LOOK)
    assert Prompt.of(p) is p and Prompt.of(LOOK) == p and len({p, Prompt(LOOK), Prompt(MOVE)}) == 2
    assert pickle.loads(pickle.dumps(p)).places == p.places and str(p) == LOOK and repr(p) == f"Prompt({LOOK!r})"
    with pytest.raises(FrozenInstanceError): p.text = MOVE


def test_a_prompt_shows_itself(): assert Prompt("a [v] <b> & c")._repr_html_() == "a <b>[v]</b> &lt;b&gt; &amp; c"


def test_one_or_several():
    assert checked_prompts(LOOK) == checked_prompts((LOOK,)) == checked_prompts(Prompt(LOOK)) == [Prompt(LOOK)]
    assert checked_prompts(p for p in (LOOK, Prompt(MOVE))) == [Prompt(LOOK), Prompt(MOVE)]
    for bad in ([], (), {}, [LOOK, None], 3, [["a man"]], [LOOK, "a (v) man"]):
        with pytest.raises(UserError): checked_prompts(bad)


def test_both_prompts():
    p = Prompts(LOOK, Prompt(MOVE))
    assert p == Prompts.of((LOOK, MOVE)) == Prompts.of([Prompt(LOOK), MOVE]) and Prompts.of(p) is p
    assert p.both == Prompt(f"{LOOK}. {MOVE}") and p.placeholders == ("[v]", "[u]") and p.appearance.plain == "a woman in a red shirt in a park"
    assert Prompts("a [v] man", "[v] is [u] going").placeholders == ("[v]", "[u]")
    assert hash(p) == hash(Prompts(LOOK, MOVE)) and p != Prompts(LOOK, "he is [u] dancing")


def test_a_prompt_may_end_in_a_full_stop():
    p, whole = Prompts("a [v] woman in a park.", "she is [u] dancing."), "a [v] woman in a park. she is [u] dancing."
    assert str(p.both) == whole and p.place == "in a park" and not any(".." in p.completed(e) or ".," in p.completed(e) for e in ("in the snow", "she is up", "a robot", ""))
    assert set_caption(p, True) == whole.replace("[u] ", "") and set_caption(p, False) == "a [v] woman in a park." == set_caption(Prompts(p.appearance, "[u]"), True)
    info = dict(appearance=p.appearance.text, motion=p.motion.text)
    assert sentence(info, info, True) == sentence(info, info, False) == whole


@pytest.mark.parametrize("pair, says", [
    (("a woman", MOVE), "has no [v]: put it before the subject"), ((LOOK, "she dances"), "has no [u]: put it before the movement"), (("a [v] [u] man", MOVE), "holds [u], which names the movement"),
    (("a [u] man", MOVE), "has no [v]"), (("a [V] man", MOVE), "write 'a [v] man'"), ((LOOK, "[z] [u]"), "placeholder [z]"), ((None, MOVE), "a text"), (("", ""), "has no [v]"),
    ("ab", "a pair"), ((LOOK,), "a pair"), ((LOOK, MOVE, MOVE), "a pair"), (None, "a pair"), ({LOOK: MOVE}, "a pair"), (5, "a pair")])
def test_no_pair(pair, says):
    with pytest.raises(UserError) as e: Prompts.of(pair)
    assert says in str(e.value)


@pytest.mark.parametrize("edit, forgets, typed", [
    ("in the snow", ["[v]", "[u]"], "a [v] woman in a red shirt in the snow. she is [u] dancing"), ("a woman in the snow.", ["[v]", "[u]"], "a [v] woman in the snow. she is [u] dancing"),
    ("she is jumping", ["[v]", "[u]"], f"{LOOK}. she is [u] jumping"), ("at night", ["[v]", "[u]"], "a [v] woman in a red shirt at night. she is [u] dancing"),
    ("a [v] woman. they are up", ["[u]"], "a [v] woman. they are [u] up"), ("she is [u] up", ["[v]"], f"{LOOK}. she is [u] up"),
    ("a robot", ["[v]", "[u]"], f"{LOOK}, a robot. {MOVE}"), ("insects", ["[v]", "[u]"], f"{LOOK}, insects. {MOVE}"), ("", ["[v]", "[u]"], f"{LOOK}. {MOVE}"),
    ("a robot in the snow", ["[v]", "[u]"], f"{LOOK}. {MOVE}"), ("robots. it is [u] up", ["[v]"], f"{LOOK}. {MOVE}"),
    (f"{LOOK}. {MOVE}", [], f"{LOOK}. {MOVE}"), (Prompt("a [v] woman"), ["[u]"], f"a [v] woman. {MOVE}")])
def test_an_edit_that_forgets(edit, forgets, typed):
    p = Prompts(LOOK, MOVE)
    assert p.missing(edit) == forgets and p.completed(edit) == typed and p.missing(p.completed(edit)) == []


@pytest.mark.parametrize("edit", ["a (v) woman", "a V woman, [ u ]", "v woman"])
def test_an_edit_that_spells_them_otherwise(edit): assert Prompts(LOOK, MOVE).missing(Prompts(LOOK, MOVE).completed(edit)) == []


@pytest.mark.parametrize("own", [("[v]", "[u]"), ("a man [v].", "[u], quickly"), ("a [v] (man)", "he is [u] *up*")])
@pytest.mark.parametrize("edit", ["in the snow", "x", "he is up", "a (man)"])
def test_new_words_at_the_end_or_before_a_sign(own, edit): assert Prompts(*own).missing(Prompts(*own).completed(edit)) == []
