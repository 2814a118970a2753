"The report card counts what it says it counts."
import subprocess, sys
from dataclasses import replace
import numpy as np
import pytest
import torch
from PIL import Image

from sas_nb.dit import VideoDiT
from sas_nb.files import read_about, UserError
from sas_nb.lab import report as module
from sas_nb.lab.oracle_nets import HELD_SEED, LABELS, words_of
from sas_nb.lab.compared import Judge
from sas_nb.lab.finder import Finder
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.report import (BARS, both_right, card_markdown, couple, exchanged, generate, load_strip, marks,
                               nearest, phrases, question, recall, renders_of, report_card, REPORT_SEED, save_strip,
                               second_difference, seen, thumbs, trained_on, verdict_sheet, verdicts)
from sas_nb.lab.specs import edit, HELDOUT
from sas_nb.lab.world import random_spec
from sas_nb.stats import median_of


@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", "cpu", torch.float32)


@pytest.fixture(scope="module")
def asked(): return [question(n) for n in range(300)]


class Knows:
    "An oracle that is told the truth, or somebody else's."
    def __init__(self, specs): self.specs = specs
    def look(self, x): return {name: torch.nn.functional.one_hot(torch.tensor([options.index(words_of(s)[name]) for s in self.specs]), len(options)).float() for name, options in LABELS.items()}


# ---------------------------------------------------------------- questions

def test_questions_are_seeded_and_nobody_elses(asked):
    assert asked[5] == question(5) != question(6) and len({q.prompt for q in asked}) > 290
    assert HELD_SEED + 10**7 < REPORT_SEED < REPORT_SEED + 10**6 < HELDOUT


def test_only_what_the_prompt_names_is_asked(asked):
    for q in asked:
        for name, phrase in phrases(q.spec).items():
            assert (name in q.asked) == bool(phrase and phrase in q.prompt+" ")
        assert all(words_of(q.spec)[name] == word for name, word in q.asked.items())
        assert not {"hat": "none", "held": "none", "thing": "none"}.items() & q.asked.items()
    counts = {name: sum(name in q.asked for q in asked) for name in LABELS}
    assert all(counts[name] > 10 for name in LABELS), counts
    assert counts["shirt"] < 300 and counts["light"] < 300 and counts["camera"] < 300, "words drop out"


def test_both_of_two_are_right_in_either_order_and_not_with_clothes_exchanged():
    judge = Judge(Oracles.load(), Finder.load())
    right, turned, wrong = [], [], []
    for n in range(8):
        q = couple(n)
        a, b = q.spec.subjects
        if (a.kind, a.shirt, a.trousers) == (b.kind, b.shirt, b.trousers): continue
        turned_round = replace(q.spec, subjects=(replace(b, x=a.x), replace(a, x=b.x)))
        exchanged_clothes = replace(q.spec, subjects=(replace(a, shirt="red" if a.shirt != "red" else "blue"), b))
        for found, spec in ((right, q.spec), (turned, turned_round), (wrong, exchanged_clothes)):
            found.append(both_right(judge, q, renders_of([spec])[0]))
    assert np.mean(right) > .6 and np.mean(turned) > .6 and not any(wrong)


def test_a_woman_is_not_a_man():
    q = next(q for q in map(question, range(50)) if q.asked.get("kind") == "woman")
    assert phrases(edit(q.spec, kind="man"))["kind"] not in q.prompt


def test_the_model_knows_every_prompt(dit, asked):
    for q in asked: dit.check_words(q.prompt)


# ---------------------------------------------------------------- samples

def test_strips_are_lossless(tmp_path):
    x = torch.randint(0, 256, (17, 3, 64, 64), dtype=torch.uint8)
    save_strip(tmp_path/"a.png", x)
    assert torch.equal(load_strip(tmp_path/"a.png"), x)
    assert np.array_equal(np.array(Image.open(tmp_path/"a.png"))[:, 64:128], x[1].permute(1, 2, 0).numpy())


def test_samples_are_made_once_and_belong_to_their_seed(dit, asked, tmp_path, monkeypatch):
    made, real = [], dit.sample
    monkeypatch.setattr(dit, "sample", lambda prompts, seeds, *a: made.append(seeds) or real(prompts, seeds, *a), raising=False)
    first = generate(dit, asked[:3], tmp_path, steps=2, batch=2)
    assert made == [[0, 1], [2]] and first.shape == (3, 17, 3, 64, 64) and first.dtype == torch.uint8
    (tmp_path/"00001.png").unlink()
    again = generate(dit, asked[:4], tmp_path, steps=2, batch=2)
    assert made[2:] == [[1, 3]] and (again[:3].int()-first.int()).abs().max() <= 1


# ---------------------------------------------------------------- marks

def test_true_answers_get_full_marks_and_others_do_not(asked):
    asked = asked[:80]; specs, x = [q.spec for q in asked], torch.zeros(80)
    right, wrong = verdicts(seen(Knows(specs), x), asked), verdicts(seen(Knows(specs[1:]+specs[:1]), x), asked)
    table = marks(wrong, right)
    assert all(row["ceiling"]["value"] == 1 for row in table.values()) and table["scene"]["model"]["value"] < .4
    assert {k: row["bar"] for k, row in table.items() if row["bar"]} == {k: bar for k, bar in BARS.items() if k != "couple"}
    for name in ("scene", "hat", "shirt"): assert table[name]["model"]["n"] == sum(name in q.asked for q in asked)


def test_dancing_is_a_row_of_its_own(asked):
    q = next(q for q in asked if q.asked.get("motion") == "dancing")
    [v] = verdicts(seen(Knows([q.spec]), torch.zeros(1)), [q])
    assert v["dancing"] and "motion" not in v
    table = marks(verdicts(seen(Knows([q.spec for q in asked]), torch.zeros(len(asked))), asked), [])
    assert table["dancing"]["model"]["n"] + table["motion"]["model"]["n"] == sum("motion" in q.asked for q in asked)


def test_clothes_worn_the_wrong_way_round_are_counted(asked):
    said = seen(Knows([q.spec for q in asked]), torch.zeros(len(asked)))
    turned = said | dict(shirt=said["trousers"], trousers=said["shirt"])
    n = 2*sum("shirt" in q.asked and "trousers" in q.asked and q.asked["shirt"] != q.asked["trousers"] for q in asked)
    assert exchanged(said, asked)["value"] == 0 and exchanged(said, asked)["n"] == n > 100
    assert exchanged(turned, asked)["value"] == 1 and exchanged(said | dict(shirt=said["trousers"]), asked)["value"] == .5


# ---------------------------------------------------------------- flicker and recall

def test_flicker_of_known_clips():
    t = torch.arange(17).view(1, 17, 1, 1, 1).expand(1, 17, 3, 8, 8)
    x = torch.cat([0*t, 7*t, 50*(t % 2), t*t//2]).byte()
    np.testing.assert_allclose(second_difference(x)[:3], [0, 0, 100]); assert 0 < second_difference(x)[3] <= 2


def test_medians_and_ratios():
    rng = np.random.default_rng(0); v = rng.uniform(1, 2, 400)
    row = median_of(v)
    assert row["low"] < row["value"] < row["high"] and row["value"] == pytest.approx(1.5, abs=.08) and row["n"] == 400
    ratio = median_of((3*v, v))
    assert ratio["value"] == ratio["low"] == ratio["high"] == 3, "paired: the same clips on both sides"


def test_nearest_is_the_smallest_rms_distance():
    x, known = torch.rand(5, 12), torch.rand(9, 12)
    want = [min(float((a-b).square().mean().sqrt()) for b in known) for a in x]
    np.testing.assert_allclose(nearest(x, known), want, rtol=1e-4)


def test_a_copier_is_found_out_and_others_are_not():
    known, specs = trained_on(120), module.trained_specs(30)
    new = renders_of([random_spec(s, people=1) for s in range(6_000_000, 6_000_060)])
    copies = recall(renders_of(specs), new[:30], known)
    honest = recall(new[30:], new[:30], known)
    assert copies["too_near"]["value"] == 1 and copies["model"]["value"] < .01 and copies["training_clips"] == 120
    assert honest["too_near"]["value"] < .3 and .6 < honest["ratio"]["value"] < 1.6


def test_thumbs_of_five_frames_are_those_of_a_whole_clip():
    x = renders_of([random_spec(8, people=1)])
    assert torch.equal(thumbs(x), thumbs(x[:, ::4])) and thumbs(x).shape == (1, 3840)


# ---------------------------------------------------------------- the card

@pytest.fixture(scope="module")
def card(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return report_card("tiny", out, n=3, steps=2, references=20, batch=3), out


def test_card_and_files(card):
    card, out = card
    assert read_about(out/"report.json") == card
    assert card["n"] == 3 and card["guidance"] == VideoDiT.load("tiny", "cpu").defaults.guidance and set(card["attributes"]) <= {*LABELS, "dancing", "both of two"}
    assert Image.open(out/"sheet.png").size == (10*132, 148)
    assert len(list(out.glob("samples/*/*.png"))) == 3 + 2  # of one, and of two


def test_a_second_run_reads_the_samples(card, monkeypatch):
    first, out = card
    monkeypatch.setattr(VideoDiT, "sample", lambda *a, **k: pytest.fail("sampled again"))
    assert report_card("tiny", out, n=3, steps=2, references=20) == first


def test_other_settings_do_not_read_them(card, monkeypatch):
    def stop(*a, **k): raise RuntimeError("sampling")
    monkeypatch.setattr(VideoDiT, "sample", stop)
    for changes in (dict(steps=3), dict(guidance=1.), dict(seed=1)):
        with pytest.raises(RuntimeError, match="sampling"): report_card("tiny", card[1], **(dict(n=3, steps=2, references=20) | changes))


def test_the_table_shows_each_mark_beside_its_ceiling(card):
    text = card_markdown(card[0])
    for name, row in card[0]["attributes"].items():
        [line] = [l for l in text.splitlines() if l.startswith(f"| {name} |")]
        assert f"{row['model']['value']:.1%}" in line and f"{row['ceiling']['value']:.1%}" in line
        assert row["bar"] is None or f"{row['bar']:.0%}, " + ("met" if row["model"]["value"] >= row["bar"] else "not met") in line


def test_sheet_names_what_is_missing():
    x = torch.randint(0, 256, (12, 17, 3, 64, 64), dtype=torch.uint8)
    sheet = verdict_sheet(x, [{"scene": True}]*12)
    assert sheet.size == (1320, 296)
    assert np.array_equal(np.array(sheet)[2:130:2, 2:130:2], x[0, 8].permute(1, 2, 0).numpy())
    assert verdict_sheet(x, [{"scene": False}]*12).tobytes() != sheet.tobytes()


def test_no_clips_no_report(tmp_path):
    with pytest.raises(UserError, match="says nothing"): report_card("tiny", tmp_path, n=0)


def test_script(root, tmp_path):
    ran = subprocess.run([sys.executable, root/"scripts"/"report.py", "--n", "1", "--steps", "1", "--out", tmp_path/"r"], capture_output=True, text=True, cwd=root)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path/"r"/"report.json").exists() and "oracle on real clips" in " ".join(ran.stdout.split())
    bad = subprocess.run([sys.executable, root/"scripts"/"report.py", "--model", str(tmp_path), "--n", "1"], capture_output=True, text=True, cwd=root)
    assert bad.returncode == 1 and "Traceback" not in bad.stderr and bad.stderr.strip()
