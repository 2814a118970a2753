"""What people see on other terminals and with numbers that cannot be: the output of every command in every encoding, and one sentence for each bad number."""
import io, math, os, re, subprocess, sys
from dataclasses import replace
from types import SimpleNamespace
import av, numpy as np, pytest, road, torch
from typer.testing import CliRunner
from sas_nb import cli, terminal
from sas_nb.advice import far_from, GenerationConfig
from sas_nb.clip import Clip
from sas_nb.concept_words import advice_of, size_advice
from sas_nb.files import Advice, real_number, UserError, whole_number
from sas_nb.plan import own_defaults
from sas_nb.prompt import Prompts
from sas_nb.writing import may_replace
from test_bad_input import refused
from test_cli import COMMANDS, FEW, LOOK, MOVE, PROMPTS, SHORT, cache, call, dancer, ok, shell, trained  # noqa: F401, the fixtures among them

ENCODINGS = ("cp1251", "cp932", "cp437", "ascii", "utf-8")


# terminals

def said(encoding, *words):
    "What a command writes to a terminal of this encoding: exit code, and bytes that the terminal can read."
    done = CliRunner(charset=encoding, env=dict(COLUMNS="80", FORCE_COLOR=None)).invoke(cli.app, [str(w) for w in words])
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    return done.exit_code, (done.stdout_bytes + done.stderr_bytes).decode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_terminal_can_show_every_command(encoding, dancer, trained, tmp_path):
    film = tmp_path / "Аня × 日本.mp4"
    film.write_bytes(dancer.read_bytes())
    calls = [["--help"], *([c, "--help"] for c in COMMANDS), ["models"], ["inspect", film], ["inspect", film, "--json"], ["info", trained, "--layers"],
             ["export", trained, "--out", tmp_path / "Ω"], ["train", film, *PROMPTS, "--out", tmp_path / "é", *SHORT]][:None if encoding == "cp1251" else -2]
    for words in calls:
        code, text = said(encoding, *words)
        assert code == 0, text
    for words, expected in ((["inspect", "нет.mp4"], 1), (["летать"], 2), (["generate", trained, "a [v] wøman", "--out", tmp_path / "x.mp4"], 1)):
        code, text = said(encoding, *words)
        assert code == expected and "Something went wrong" not in text


def test_what_a_terminal_lacks_is_spelt(dancer):
    for encoding, frames in (("ascii", "10 ... 30"), ("cp437", "10 ... 30"), ("utf-8", "10 … 30")): assert frames in said(encoding, "inspect", dancer)[1]
    assert "256 wide, 256 high" in said("ascii", "inspect", dancer)[1]
    assert "\\u" not in said("ascii", "info", "--help")[1] + said("cp1251", "models")[1], "frames are drawn in ASCII"


def test_a_real_process_with_another_encoding(dancer):
    env = os.environ | dict(PYTHONIOENCODING="cp437", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    done = subprocess.run([sys.executable, "-m", "sas_nb.cli", "inspect", str(dancer)], capture_output=True, timeout=120, env=env)
    assert done.returncode == 0 and "10 ... 30" in done.stdout.decode("cp437"), done.stderr


# numbers

@pytest.mark.parametrize("given, value", [(3, 3), (np.int64(3), 3), (np.float32(3), 3), (torch.tensor(3), 3), (3., 3)])
def test_whole_numbers_of_every_kind(given, value):
    got = whole_number(given, "n", 1, 9)
    assert (got, type(got)) == (value, int)


@pytest.mark.parametrize("bad", [0, -3, 10, 10 ** 30, 2.5, math.nan, math.inf, True, np.bool_(True), "3", None, [3], np.array([1, 2])])
def test_what_is_no_whole_number(bad):
    with pytest.raises(UserError, match=r"^n=.* must be a whole number from 1 to 9"): whole_number(bad, "n", 1, 9)
    if not isinstance(bad, float) or bad != 2.5:
        with pytest.raises(UserError, match=r"must be a number from 1 to 9"): real_number(bad, "n", 1, 9)


@pytest.mark.parametrize("options, says", [
    (["--seed", 99999999999999999999], "--seed 99999999999999999999"), (["--frames", -3], "--frames -3"), (["--frames", 0], "--frames 0"), (["--frames", 16], "13 and 17"), (["--steps", 10 ** 12], "--steps 10"),
    (["--guidance", "nan"], "--guidance nan"), (["--motion-guidance", "inf"], "--motion-guidance inf"), (["--appearance", "nan"], "--appearance nan"), (["--motion", 1e9], "--motion"), (["--negative-scale", -1], "--negative-scale -1"),
    (["--fps", 1e9], "--fps 1000000000.0 must be"), (["--fps", 0], "--fps 0"), (["--fps", "nan"], "--fps nan")])
def test_a_number_that_generate_cannot_use(options, says, trained, tmp_path):
    assert says in refused("generate", trained, "--out", tmp_path / "x.mp4", *FEW[:2], "--quiet", *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options, says", [
    (["--seed", 99999999999999999999], "--seed"), (["--rank", 0], "--rank 0"), (["--rank", 10 ** 9], "--rank"), (["--lr", "nan"], "--lr nan"), (["--steps1", 10 ** 12], "--steps1 1000000000000"),
    (["--set", "both.token_lr=1e999"], "--set both.token_lr=inf"), (["--set", "stage1.dropout=-1"], "--set stage1.dropout=-1"), (["--fps", 1e9], "--fps 1000000000.0 must be"), (["--frames", -3], "--frames -3"), (["--start", "inf"], "--start inf")])
def test_a_number_that_train_cannot_use(options, says, dancer, tmp_path):
    assert says in refused("train", dancer, *PROMPTS, "--out", tmp_path / "run", *SHORT, *options)
    assert not list(tmp_path.rglob("*.safetensors"))


# in Python

@pytest.fixture(scope="module")
def concept(trained):
    from sas_nb.concept import Concept
    return Concept.load(trained / "concept")


SOME = dict(steps=1, num_frames=5)


def test_numpys_numbers_are_numbers(concept):
    plain = concept.generate(seed=3, guidance=1, **SOME)
    same = concept.at(np.float32(1), torch.tensor(1.)).generate(seed=np.int64(3), steps=np.int32(1), num_frames=np.int64(5), guidance=np.float64(1), fps=np.float32(12))
    assert isinstance(same, Clip) and same.frames.equal(plain.frames)
    many = concept.generate(seed=np.array([3]), guidance=1, **SOME)
    assert isinstance(many, list) and many[0].frames.equal(plain.frames)


@pytest.mark.parametrize("wrong, says", [
    (dict(prompt=[]), "list of prompts is empty"), (dict(seed=[]), "list of seeds is empty"), (dict(prompt=3), "a text"), (dict(prompt=[None]), "a text"), (dict(seed="3"), "seed='3'"), (dict(seed=True), "seed=True"),
    (dict(seed=2 ** 64), "seed="), (dict(seed=.5), "seed=0.5"), (dict(steps=0), "steps=0"), (dict(steps=-1), "steps=-1"), (dict(num_frames=0), "num_frames=0"), (dict(num_frames="5"), "num_frames='5'"), (dict(height=-16), "height=-16"),
    (dict(fps="fast"), "fps='fast'"), (dict(fps=math.inf), "fps=inf"), (dict(guidance=math.nan), "guidance=nan"), (dict(motion_guidance=None), "motion_guidance=None")])
def test_what_generate_refuses(concept, wrong, says):
    with pytest.raises(UserError, match=re.escape(says)): concept.generate(**SOME | wrong)


@pytest.mark.parametrize("wrong", [dict(steps=True), dict(batch="8"), dict(seed=2 ** 70), dict(lr="fast"), dict(prior=math.nan), dict(dropout=None)])
def test_numbers_of_a_stage_that_cannot_be(wrong):
    with pytest.raises(UserError, match=f"^{next(iter(wrong))}="): road.stage(**wrong)


def test_a_stage_keeps_what_was_given():
    s = road.stage(steps=np.int64(7), prior=0, dropout=np.float32(.5))
    assert [(type(v), v) for v in (s.steps, s.prior, s.dropout)] == [(int, 7), (int, 0), (float, .5)]


# options

@pytest.mark.parametrize("words, command, says", [
    ("'start=.mp4' gives 2 frames: choose a higher fps, or num_frames=1 for a still.", "", "'start=.mp4' gives 2 frames: choose a higher fps, or --frames 1 for a still."),
    ("choose a part between cuts with start= and num_frames=", "inspect", "choose a part between cuts with --start and --frames"),
    ("steps=0 must be a whole number", "generate", "--steps 0 must be a whole number"), ("steps=-1 must be", "train", "--steps1 or --steps2 -1 must be"),
    ("the model's own: train with token_init=0 and 'a (v) steps=3'", "train", "the model's own: train with --set both.token_init=0 and 'a (v) steps=3'"),
    ("set sample_every=0, or apart=False, or rank='x'", "train", "set --sample-every 0, or --no-apart, or --rank 'x'"),
    ("--set stage1.prior=2 must be, and negative_scale=3", "train", "--set stage1.prior=2 must be, and --set sampling.negative_scale=3"), ("pass fps=.", "", "pass --fps.")])
def test_advice_in_the_commands_own_words(words, command, says): assert terminal.as_options(words, command) == says


def test_inspect_speaks_of_options(tmp_path):
    slow = torch.rand(9, 3, 64, 64).repeat_interleave(2, 0)
    Clip(slow, 12).save(tmp_path / "slow.mp4")
    said = " ".join(ok("inspect", tmp_path / "slow.mp4").split())
    assert "--fps 6" in said and "fps=" not in said
    Clip(torch.rand(2, 3, 64, 64), 12).save(tmp_path / "two.mp4")
    assert "--frames 1" in refused("inspect", tmp_path / "two.mp4")


# new words

def test_a_prompt_that_forgets_them(trained, tmp_path):
    out = tmp_path / "x.mp4"
    said = " ".join(ok("generate", trained, "in the snow", "--out", out, *FEW).split())
    assert said.startswith("Warning: The prompt 'in the snow' has no [v]") and "and no [u]" in said and out.exists()
    assert f"type '{LOOK.replace('in a park', 'in the snow')}. {MOVE}'" in said
    said = ok("generate", trained, "a [v] woman in the snow. she is jumping", "--out", out, *FEW)
    assert "has no [u]" in said and "has no [v]" not in said and "she is [u] jumping" in said
    for words in ([], [f"{LOOK}. {MOVE}"], ["in the snow", "--appearance", 0, "--motion", 0]): assert "Warning" not in ok("generate", trained, *words, "--out", out, *FEW)


@pytest.mark.parametrize("prompt", ["a (v) woman in the snow", "a [ v ] woman in the snow", "a [V] woman in the snow", "a {v} woman in the snow", "a <v> woman in the snow"])
def test_a_new_word_spelt_otherwise(prompt, trained, dancer, tmp_path):
    for words in (["generate", trained, prompt, "--out", tmp_path / "x.mp4", *FEW], ["train", dancer, "--appearance", prompt, "--motion", MOVE, "--out", tmp_path / "run", *SHORT]):
        assert "write 'a [v] woman in the snow'" in refused(*words)


def test_python_is_warned_too(concept):
    with pytest.warns(Advice, match=r"has no \[v\].* and no \[u\]") as heard: concept.generate(["a woman in the snow", concept.prompt], **SOME)
    assert len(heard) == 1 and heard[0].filename == __file__
    assert concept.advice(None) == concept.advice(concept.prompt) == [] and len(concept.advice(["on a beach", "in the snow"])) == 2


def test_a_word_that_says_nothing_is_not_missed(concept):
    silent = replace(concept, tokens=concept.tokens | {"[u]": 0 * concept.tokens["[u]"]})
    assert "[u]" not in silent.advice("a woman in the snow")[0].partition(": type")[0]
    assert not silent.at(appearance=0).advice("a woman in the snow")


PAIR = Prompts("a [v1] woman and a [v2] man in a park", "she is [u1] dancing, he is [u2] dancing")
BEACH = "a [v1] woman and a [v2] man on a beach. she is [u1] dancing, he is [u2] dancing"

@pytest.mark.parametrize("own, prompt, says, typed", [
    (PAIR, "a [v] woman and a [v] man on a beach. she is [u] dancing, he is [u] dancing", "has [v] and [u], words that this concept does not have (it has [v1] and [v2] for who they are, [u1] and [u2] for how they move), so it may show somebody else: type", BEACH),
    (PAIR, "a [v2] woman and a [v3] man on a beach. she is [u2] dancing, he is [u3] dancing", "has [v3] and [u3], words that", BEACH), (PAIR, "a [v4] woman and a [v3] man on a beach. he is [u3] dancing, she is [u4] dancing", "has [v4], [v3], [u3] and [u4], words", "a [v1] woman and a [v2] man on a beach. he is [u2] dancing, she is [u1] dancing"),
    (PAIR, "a woman and a man on a beach. she is dancing, he is dancing", "has no [v1] or [v2] (the new words for who they are) and no [u1] or [u2] (the new words for how they move), so it may show somebody else: type", BEACH),
    (PAIR, "a [v1] woman and a [v3] man on a beach. she is [u1] dancing, he is [u3] dancing", "has [v3] and [u3], words", BEACH), (PAIR, "a dog on a beach", "has no [v1] or [v2]", None), (PAIR, "a [v] man on a beach. he is [u] dancing", "has [v] and [u]", "a [v2] man on a beach and a [v1] woman. he is [u2] dancing, she is [u1] dancing"),
    (PAIR, "a [u1] woman and a [u2] man on a beach. she is [v1] dancing, he is [v2] dancing", "the wrong way round", BEACH),
    (Prompts(LOOK, MOVE), "a [u] woman. she is [v] dancing", "has [u] and [v] the wrong way round (it has [v] for who it is, [u] for how it moves): type", "a [v] woman. she is [u] dancing"),
    (Prompts(LOOK, MOVE), BEACH, "has [v1], [v2], [u1] and [u2], words that this concept does not have (it has [v] for who it is, [u] for how it moves), so it may show somebody else: write them as in", None),
    (Prompts(LOOK, MOVE), "a [v] woman and a [v2] man. she is [u] dancing", "has [v2], which this concept does not have (it has [v] for who it is, [u] for how it moves): type", "a [v] woman and a man. she is [u] dancing"),
    (Prompts(LOOK, MOVE), "a [u] woman. she is up", "has no [v] (the new word for who it is), so it", None), (Prompts(LOOK, MOVE), "here is [v] and the [u] dance", "", None), (Prompts(LOOK, MOVE), "a robot in the snow", "write them as in", None),
    (Prompts("a [v] man", "the [u] dance"), "a [v] man, the [u] dance", "", None), (PAIR, BEACH, "", None)])
def test_advice_on_words(own, prompt, says, typed):
    concept = SimpleNamespace(appearance=1., motion=1., prompts=own, tokens={w: torch.ones(2) for w in own.placeholders})
    said = " ".join(advice_of(concept, prompt))
    assert says in said and bool(said) is bool(says)
    if said: assert said.endswith(f" {typed or own.both.text!r}.") and said.count(", so ") <= 1 and advice_of(concept, typed or own.both.text) == []


@pytest.mark.parametrize("size, words", [(dict(height=128, width=128), "'tiny' was trained at 64x64 (height x width), and 128x128 has 4 times as many pixels, so the picture may fall apart: ask for a nearer size."),
    (dict(height=32, width=32), "0.25 times as many"), (dict(height=64, width=96), ""), (dict(width=192), "64x192 has 3 times"), ({}, "")])
def test_a_size_that_the_model_never_saw(concept, size, words):
    assert words in " ".join(size_advice(concept, size)) and bool(size_advice(concept, size)) is bool(words)
    if size.get("height") == 32:
        with pytest.warns(Advice, match="32x32 has 0.25 times"): concept.generate(**SOME | size)
        filmed = dict(concept.info["clip"], shape=[17, 3, 32, 32])
        assert not size_advice(replace(concept, info=concept.info | dict(clip=filmed)), size), "it was learned at that size"


def test_published_models_know_several_sizes():
    config = own_defaults("Wan-AI/Wan2.1-T2V-14B-Diffusers")
    assert not any(far_from(config, "wan", *size) for size in ((480, 832), (720, 1280), (1280, 720), (624, 624))) and "480x832 and 720x1280" in far_from(config, "wan", 240, 416)
    assert not far_from(GenerationConfig(), "unknown", 16, 16)


def test_the_page_says_it(trained):
    from sas_nb.explore.maps import Position
    from sas_nb.explore.renderer import Studio
    studio = Studio([trained], steps=1, preview=1, num_frames=5)
    p = Position(studio.names[0], studio.names[0], prompt="in the snow")
    assert "has no [v]" in studio.advice(p)[0] and studio.advice(Position(p.look, p.dance)) == []


def test_a_prompt_that_is_too_long(concept, trained, tmp_path):
    dit = concept.base()
    fits, long = "[v] woman " + "red " * 509 + "[u]", "[v] woman " + "red " * 512 + "in the snow [u]"
    assert dit.unread(fits) == "" and dit.unread(long) == "red red in the snow"
    with pytest.warns(Advice, match="reads 512 tokens.*'red red in the snow'"): concept.generate(long, **SOME)
    assert "Warning: The prompt is too long" in ok("generate", trained, long, "--out", tmp_path / "x.mp4", *FEW)


# rates

def rate(path): return Clip.load(path).fps


@pytest.fixture(scope="module")
def slow(dancer, tmp_path_factory):
    "The folder of a run learned at 8 frames per second, with a sample on the way."
    out = tmp_path_factory.mktemp("slow") / "run"
    ok("train", dancer, *PROMPTS, "--out", out, *SHORT, "--sheet", "--fps", 8, "--sample-every", 1)
    return out


def test_a_clip_plays_as_it_was_filmed(slow, trained, tmp_path):
    for folder, options, fps in ((slow, [], 8), (slow, ["--fps", 5], 5), (trained, [], 12)):
        assert f"{fps} per second" in ok("generate", folder, "--out", tmp_path / "x.mp4", *FEW, *options)
        assert rate(tmp_path / "x.mp4") == fps
    assert rate(next((slow / "samples").glob("motion-*.mp4"))) == 8, "samples of the training too"


def test_the_page_plays_it_so(slow):
    from PIL import Image
    from sas_nb.explore.renderer import Studio
    studio = Studio([slow], steps=1, preview=1, num_frames=5)
    quick = Image.open(io.BytesIO(studio.render(studio.start, True)))
    quick.load()
    assert quick.info["duration"] == 125
    with av.open(io.BytesIO(studio.render(studio.start))) as f: assert f.streams.video[0].average_rate == 8


def test_an_old_concept_and_a_mix(slow, trained):
    from dataclasses import replace
    from sas_nb.atlas.geometry import Atlas
    from sas_nb.concept import Concept
    eight, twelve = (Concept.load(f / "concept") for f in (slow, trained))
    old = replace(twelve, info={k: v for k, v in eight.info.items() if k != "clip"})
    assert old.fps is None and old.generate(steps=1, num_frames=5).fps == 12, "the base's own"
    atlas = Atlas(dict(eight=eight, twelve=twelve))
    assert atlas.mix([1, 0], [0, 1]).fps == 12 and atlas.mix([0, 1], [1, 0]).fps == 8, "the rate is the dance's"


# pictures

def test_inspect_draws_what_the_model_can_show(dancer, tmp_path):
    from PIL import Image
    from sas_nb.dit import VideoDiT
    clip = Clip.load(dancer, num_frames=17, fps=12, size=(64, 64))
    back, psnr = VideoDiT.of("tiny").round_trip(clip)
    assert psnr == pytest.approx(-10 * math.log10((back.frames - clip.frames).square().mean().item()), abs=1e-4) and back.fps == 12
    said = ok("inspect", dancer, "--picture", tmp_path / "new" / "seen.png")
    assert f"{psnr:.1f} dB" in said and "drawn figures only" in said
    assert Image.open(tmp_path / "new/seen.png").width > 600
    assert ".png" in refused("inspect", dancer, "--picture", tmp_path / "seen.txt")


def test_a_training_ends_with_a_picture(slow):
    for name in ("sheet.png", "loss.png"): assert (slow / name).exists() and may_replace(slow / name)


def test_a_picture_of_ones_own_stays(dancer, slow, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/sheet.png").write_text("mine")
    assert "Look at" not in ok("train", dancer, *PROMPTS, "--out", tmp_path / "run", *SHORT, "--sheet")
    assert (tmp_path / "run/sheet.png").read_text() == "mine" and not (tmp_path / "run/loss.png").exists()


def test_a_finished_run_says_so(dancer, slow):
    again = ok("train", dancer, *PROMPTS, "--out", slow, *SHORT, "--sheet", "--fps", 8, "--sample-every", 1)
    assert "finished already" in again and "Look at" in again


def test_a_hub_id_without_a_network():
    from sas_nb.dit import VideoDiT
    with pytest.raises(UserError, match="without a network"): VideoDiT.load("nobody/has-this-model")


def test_models_fits_a_terminal():
    lines = CliRunner(env=dict(COLUMNS="80")).invoke(cli.app, ["models"]).output.splitlines()
    table = [l for l in lines if set(l) & set("│┃━─")]
    assert table and max(map(len, table)) <= 80 and any("17 frames, 64x64" in l for l in table) and not any("…" in l for l in table)
