"A template for two prompts, and what a lint says of two prompts."
import pytest
import wan_folder
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.phrasing import lint, phrased
from sas_nb.prompt import Prompts

GOOD = "a [v] woman in a red shirt in a park", "she is [u] dancing"


@pytest.mark.parametrize("given, look, motion", [
    (dict(subject="woman", movement="dancing", place="in a park"), "a [v] woman in a park", "she is [u] dancing"),
    (dict(subject="An old man", movement="waving", place="on a stage", wearing="in a grey suit", also="at night"), "a [v] old man in a grey suit on a stage at night", "he is [u] waving"),
    (dict(subject=" the dog "), "a [v] dog", "it is [u]"),
    (dict(subject="children", movement=" running "), "a [v] children", "they are [u] running"),
    (dict(subject="snowman", movement="melting"), "a [v] snowman", "it is [u] melting"),
    (dict(subject="theatre", movement="burning"), "a [v] theatre", "it is [u] burning")])
def test_the_template(given, look, motion):
    made = phrased(**given)
    assert (str(made.appearance), str(made.motion)) == (look, motion)


@pytest.mark.parametrize("subject", ["", "  ", "a", "The "])
def test_a_template_needs_a_subject(subject):
    with pytest.raises(UserError, match="There is no subject"): phrased(subject)


@pytest.mark.parametrize("pair, says", [
    (("a woman in a park", GOOD[1]), ["has no [v]"]), ((GOOD[0], "she is dancing"), ["has no [u]"]), (("a woman in a park", "she is dancing"), ["has no [v]", "has no [u]"]),
    (("a [v] woman dancing in a park", GOOD[1]), ["how it moves ('dancing')"]), (("a [v] dog on a beach, running", "it is [u] running"), ["how it moves ('running')"]),
    (("a [v] in a park", GOOD[1]), ["does not name the subject"]), (("[v], in a park", GOOD[1]), ["does not name the subject"]),
    (("a [v] woman", GOOD[1]), ["names no place"]), (("a [v] woman in a blue dress", GOOD[1]), ["names no place"]),
    (("a [v] woman [v] in a park", GOOD[1]), ["[v] stands there more than once"]), (("a [v] man in a park", "she is [u] dancing"), ["says 'she' of somebody"]),
    (("a [v] woman in a park [u]", GOOD[1]), ["holds [u]", "[u] stands there more than once"]), (("a (v) woman in a park", GOOD[1]), ["write 'a [v] woman in a park'"]),
    (("a woman", None), ["A prompt is a text"]), ("a [v] woman", ["are a pair"]), (None, ["are a pair"]), (("a",), ["are a pair"])])
def test_each_fault_is_a_sentence(pair, says):
    told = lint(pair)
    assert len(told) == len(says) and all(part in words for part, words in zip(says, told)), told
    assert all(words.endswith(".") for words in told)


@pytest.mark.parametrize("pair", [GOOD, Prompts(*GOOD), ("a [v] boat on a lake, evening light, seen from above", "it is [u]"), ("a [v] man standing in a hallway", "he is [u] talking"), ("a [v] couple in front of a building, she in red", "she is [u] bowing")])
def test_what_is_well_said_passes(pair): assert lint(pair) == []


def test_the_base_is_asked(tmp_path):
    tiny = VideoDiT.load("tiny", "cpu")
    assert lint(GOOD, tiny) == []
    (unknown,) = lint(("a [v] astronaut in a park", GOOD[1]), tiny)
    assert "does not know 'astronaut'" in unknown
    (long,) = lint((f"a [v] woman in a park{', in a park'*200}", GOOD[1]), tiny)
    assert "reads 512 tokens" in long
    any_words = VideoDiT.load(wan_folder.write(tmp_path), "cpu")
    assert lint(("a [v] astronaut in a park", GOOD[1]), any_words) == []
    assert not (tiny.loaded | any_words.loaded) - {"tokenizer"}
