"Detect and compare, on clips whose answer is known: swapped, mixed, missing, and what a table makes of rows."
import re
import numpy as np, pytest, torch
from sklearn.metrics import roc_auc_score
from scipy.stats import spearmanr
from sas_nb.files import UserError
from sas_nb.lab.compared import (blended, compare, exact, Judge, levelled, matched, matrix_row, mixture, spoilt,
                                 wrong_share)
from sas_nb.lab.compose_bench import asked
from sas_nb.lab.compose_table import by_case, load_rows, METRICS, relative, save_rows, summary, with_leaks
from sas_nb.lab.draw import truth
from sas_nb.lab.finder import figures, Finder, NEARER, two_lines
from sas_nb.lab.gatherings import GATHERED, gathering, gatherings, prompt_of
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.world import CHOICES, IDENTITY, Person
from sas_nb.prompt import Prompt


@pytest.fixture(scope="module")
def judge(): return Judge(Oracles.load(), Finder.load())


@pytest.fixture(scope="module")
def pairs(): return [levelled(gathering(c, k)) for k in (0, 1) for c in ("different", "same clothes")]


def seen(judge, g, spec, given=True):
    clip = g.world.render(spec, fps=g.fps)
    return compare(judge, g, clip, exact(spec, len(clip), g) if given else None).row


@pytest.fixture(scope="module")
def answers(judge, pairs):
    "Rows by name of what is wrong, by exact masks."
    rows = {}
    for g in pairs:
        for name, spec in spoilt(g).items(): rows.setdefault(name, []).append(seen(judge, g, spec))
    return rows


def column(answers, name, key): return [r[key] for r in answers[name]]


@pytest.mark.parametrize("wrong, key", [("looks swapped", "bound"), ("movements swapped", "bound"), ("one twice", "bound"),
                                        ("one missing", "present"), ("looks mixed", "matrix_identity"),
                                        ("movements mixed", "matrix_gait"), ("one twice", "identity"), ("one missing", "gait")])
def test_wrong_answers_score_less(answers, wrong, key):
    right, bad = column(answers, "right", key), column(answers, wrong, key)
    assert roc_auc_score([1] * len(right) + [0] * len(bad), right + bad) > .9


def test_a_swap_is_called_a_swap(answers):
    for name in ("looks swapped", "movements swapped"): assert np.mean(column(answers, name, "swapped")) > .8
    for name in ("right", "one missing"): assert np.mean(column(answers, name, "swapped")) == 0


def test_a_missing_subject_counts_nothing(answers):
    assert column(answers, "one missing", "present") == [.5] * 4 and column(answers, "one missing", "all_present") == [0.] * 4
    for key in ("identity", "gait"): assert max(column(answers, "one missing", key)) <= .51


@pytest.mark.parametrize("what, off", [("identity", .4), ("gait", .15)]) # looks change by jumps: a pattern more, and it is another shirt
def test_leak_rises_with_what_has_leaked(judge, pairs, what, off):
    steps = (0, .3, .5, .7, 1.)
    shares = [np.mean([seen(judge, g, blended(g, what, t))[f"wrong_{what}"] for g in pairs]) for t in steps]
    assert spearmanr(steps, shares)[0] > .95 and shares[0] < .2 and shares[-1] > .8 and abs(shares[2] - .5) < off


def test_the_finder_says_what_exact_masks_say(judge, pairs):
    for g in pairs[:1]:
        for name in ("right", "one missing"):
            by_masks, found = (seen(judge, g, spoilt(g)[name], given) for given in (True, False))
            assert {k: by_masks[k] for k in ("present", "swapped", "extra")} == {k: found[k] for k in ("present", "swapped", "extra")}
            assert abs(by_masks["identity"] - found["identity"]) < .25


def test_mixtures_are_found_whether_references_are_alike_or_opposite():
    for cosine in (-.6, 0., .6):
        ideal = np.array([[1, cosine], [cosine, 1]])
        for t in (0., .25, .5):
            parts = mixture((1 - t) * ideal[0] + t * ideal[1], ideal)
            assert abs(parts[1] / parts.sum() - t) < .06
    assert np.isnan(wrong_share(np.array([[.9]]), np.eye(1), {0: 0})) and np.isnan(wrong_share(np.zeros((0, 2)), np.eye(2), {}))


def test_matching_takes_both_similarities_and_each_reference_once():
    assert matched(np.array([[.2, .9], [.1, .8]]), np.array([[.9, 0], [0, .9]])) == {0: 0, 1: 1}
    assert matched(np.array([[.1, .9]]), np.zeros((1, 2))) == {1: 0}
    assert matched(np.array([[.1, .9], [.9, .1]]), np.eye(2)) == {0: 0, 1: 1}, "in a tie the order of names decides"
    row = matrix_row(np.array([[0., 1.], [1., 0.], [0., 0.]]), np.array([[1., 0.], [0., 1.], [0., 0.]]), (np.eye(2), np.eye(2)))
    assert row["swapped"] == 1 and row["bound"] == 0 and row["extra"] == 1


def test_two_who_cross_are_two_lines():
    t = np.tile(np.linspace(0, 1, 17), 40)
    noise = np.random.default_rng(0).normal(0, 1.5, len(t))
    whose = np.arange(len(t)) % 2
    x = np.where(whose, 15 + 30 * t, 45 - 30 * t) + noise
    lines, found = two_lines(t, x, np.ones(len(t)))
    assert sorted(np.round(lines[:, 1], -1)) == [-30, 30]
    away = abs(t - .5) > .2
    assert max(np.mean((found == whose)[away]), np.mean((found != whose)[away])) > .98
    assert len(two_lines(t, 30 + noise, np.ones(len(t)))[0]) == 1


def test_an_empty_stage_has_nobody(tmp_path):
    found = figures(torch.zeros(5, 64, 64, dtype=torch.long), torch.zeros(5, 64, 64))
    assert found["people"].shape == (0, 5, 64, 64)
    with pytest.raises(UserError, match="64 pixels"): Finder.load().find(torch.zeros(5, 3, 32, 32))
    with pytest.raises(UserError, match="no finder"): Finder.load(tmp_path)


def test_gatherings_are_the_same_each_time_and_cover_the_cases():
    names = [g.name for g in gatherings()]
    assert len(names) == len(set(names)) >= 24 and {g.case for g in gatherings()} == set(GATHERED)
    assert [repr(g.spec) for g in gatherings()] == [repr(g.spec) for g in gatherings()]
    for g in gatherings():
        words = Prompt(prompt_of(g))
        assert sorted(words.placeholders) == sorted(f"[{w}{k}]" for w in "uv" for k in range(1, len(g.spec.subjects) + 1))
        dressed = [s for s in g.spec.subjects if isinstance(s, Person)]
        assert "shirt" not in words.plain and prompt_of(g, False).count("shirt") == len(dressed)
        assert all("shirt" not in look and "[v]" in look and "[u]" in moves for look, moves in g.prompts())
        assert words.plain == re.sub(r" in an? \w+ shirt and \w+ trousers", "", prompt_of(g, False)) and len(g.singles) == len(g.spec.subjects)
        assert all(len(s.subjects) == 1 for s in g.singles)


def test_runners_pass_each_other_in_the_middle():
    for k in range(2):
        a, b = (J[..., 0].mean(1) for J in truth(gathering("crossing", k).spec, 17, 12.).joints)
        assert (a-b)[0] < -15 and abs((a-b)[8]) < 8 and (a-b)[-1] > 15 and 24 < a[8] < 40
        assert np.abs(a-b).mean() > 1.5*NEARER, "else the finder takes two for one"


def test_half_of_two_looks_is_half_of_the_numbers_and_half_of_the_choices(pairs):
    g = pairs[0]
    a, b = g.spec.subjects
    mixed = {t: blended(g, "identity", t).subjects[0].identity for t in (0., .5, 1.)}
    assert mixed[0.] == pytest.approx(a.identity) and mixed[1.] == pytest.approx(b.identity)
    for name, x, y, half in zip(IDENTITY, a.identity, b.identity, mixed[.5]):
        assert half in (x, y) if name in CHOICES else half == pytest.approx((x+y)/2)
    swapped = sum(dict(zip(IDENTITY, mixed[.5]))[name] == dict(zip(IDENTITY, b.identity))[name] for name in CHOICES)
    assert abs(swapped - len(CHOICES)/2) < 1


def rows(**changed):
    blank = dict.fromkeys(METRICS, float("nan"))
    return [blank | dict(composition=f"pair-{k}", case="pair", method=m, seed=0, all_present=p, wrong_identity=w)
            for k in range(4) for m, p, w in (("captions alone", k % 2, .5), ("single concepts", 1., .1), ("sum", float(k > 0), .4))]


def test_leak_is_less_the_null_and_a_table_survives_the_disk(tmp_path):
    table = with_leaks(rows())
    assert {round(r["leak_identity"], 6) for r in table if r["method"] == "sum"} == {.3}
    save_rows(table, tmp_path / "t.csv")
    again = load_rows(tmp_path / "t.csv")
    assert len(again) == 12 and again[2]["leak_identity"] == .3 and np.isnan(again[0]["gait"])
    assert by_case(again)["pair"]["captions alone"] == .5 and relative(again)["pair"]["sum"] == 1.5
    assert "| sum | 0.75 (4)" in summary(again)


def test_the_base_is_asked_more_often_and_exact_answers_once():
    asks = asked(gatherings(1)[:2], ["exact", "captions alone", "sum"], seeds=2)
    count = [(a.method, a.seed) for a in asks if a.gathering.name == asks[0].gathering.name]
    assert [sum(m == n for m, _ in count) for n in ("exact", "captions alone", "sum")] == [1, 4, 2]
