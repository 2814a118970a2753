"Where somebody is and what they wear: one notion of both, whoever asks."
import pytest
from sas_nb.advice import GenerationConfig
from sas_nb.composites import _caption
from sas_nb.description import is_worn, place_of, with_phrase, without_place
from sas_nb.explore.prompts import without_clothes
from sas_nb.folded import _places
from sas_nb.phrasing import lint
from sas_nb.prompt import in_one_place, Prompts, together


@pytest.mark.parametrize("text, place, without", [
    ("a [v] man in a red shirt in a park", "in a park", "a [v] man in a red shirt"), ("a [v] man in a red shirt", "", "a [v] man in a red shirt"),
    ("a [v] woman in a park in a red dress", "in a park", "a [v] woman in a red dress"), ("a [v] bonfire in a forest at night.", "in a forest at night", "a [v] bonfire"),
    ("a [v] man in a leather jacket in a busy street", "in a busy street", "a [v] man in a leather jacket"), ("a [v] woman in high heels at night", "at night", "a [v] woman in high heels"),
    ("a [v] man wearing a crown in front of a castle", "in front of a castle", "a [v] man wearing a crown"), ("a [v] man in black under a bridge", "under a bridge", "a [v] man in black"),
    ("a [v] flag in the wind in a park", "in a park", "a [v] flag in the wind"), ("a [v] man in front of a hat shop", "in front of a hat shop", "a [v] man"),
    ("a [v] man on top of a hill", "on top of a hill", "a [v] man"), ("a [v] woman in a crop top", "", "a [v] woman in a crop top"), ("a [v] dog outdoors", "outdoors", "a [v] dog"),
    ("a [v] boat on a lake, evening light", "on a lake", "a [v] boat, evening light"), ("on a stage, a [v] man in a suit and tie", "on a stage", "a [v] man in a suit and tie"),
    ("a [v1] man in a park and a [v2] dog", "", "a [v1] man in a park and a [v2] dog"), ("a [v1] man on the left and a [v2] dog on the right", "", "a [v1] man on the left and a [v2] dog on the right"),
    ("a [v] man in his thirties with a ball in his hand", "", "a [v] man in his thirties with a ball in his hand"), ("a [v] woman looking at the camera", "", "a [v] woman looking at the camera")])
def test_the_place_is_the_last_one_that_is_not_worn(text, place, without):
    p = Prompts(text, " ".join(w for w in ("[u]", "[u1]", "[u2]") if w.replace("u", "v") in text))
    assert (place_of(text), without_place(text)) == (p.place, p.without_place().appearance.text) == (place, without.rstrip("."))
    faults = lint((text, "[u]")) if "[v]" in text else []
    assert any("names no place" in words for words in faults) == (not place and "[v]" in text)


@pytest.mark.parametrize("own, edit, typed", [
    ("a [v] man in a red shirt", "in the snow", "a [v] man in a red shirt in the snow"), ("a [v] man in a red shirt in a park", "in a blue coat", "a [v] man in a blue coat in a park"),
    ("a [v] woman in a park in a red dress", "in the snow", "a [v] woman in the snow in a red dress"), ("a [v] man in a park", "with a dog", "a [v] man with a dog in a park"),
    ("a [v] man in a forest at night", "on a beach", "a [v] man on a beach"), ("a [v] man in a red shirt in a park", "in a suit on a stage", "a [v] man in a suit on a stage"),
    ("a [v] boat on a lake, evening light", "on the sea", "a [v] boat on the sea, evening light"), ("a [v] man in a park", "a dog in a red hat", "a [v] man in a park, a dog in a red hat")])
def test_an_edit_goes_where_the_old_words_are(own, edit, typed):
    assert Prompts(own, "he is [u] up").completed(edit) == f"{typed}. he is [u] up"
    if edit[0] != "a": assert with_phrase(own, edit) == typed


def test_clothes_are_no_place_that_is_shared():
    pair = [Prompts("a [v1] man in a red shirt", "he is [u1]"), Prompts("a [v2] woman in a red shirt", "she is [u2]")]
    assert together(in_one_place(pair)).appearance.text == "a [v1] man in a red shirt and a [v2] woman in a red shirt"
    assert _caption(pair, [1, 0], 0, False, True).appearance.text == "a [v2] woman in a red shirt on the left and a [v1] man in a red shirt on the right"


def test_folded_words_are_learned_in_places_and_not_in_clothes():
    class concept: prompts, dit = Prompts("a [v] man in a park", "[u]"), type("", (), dict(defaults=GenerationConfig()))
    places = _places(concept)
    assert len(places) > 4 and "in a park" not in places and not any(map(is_worn, places))


@pytest.mark.parametrize("phrase, worn", [("in a leather jacket", True), ("wearing a mask", True), ("in dark blue and white", True), ("with long hair", True), ("in a hair salon", False), ("in a glass house", False), ("in a park", False)])
def test_what_is_worn(phrase, worn):
    assert is_worn(phrase) == worn and (without_clothes(f"a [v] man {phrase}") == "a [v] man") == worn
