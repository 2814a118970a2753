"""The command line: what each command prints, writes and answers with, in this process and in a real one."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"  # or typer colours its help where it believes to be on GitHub
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner
from sas_nb import __version__, cli, scenes
from sas_nb.answers import changes, provenance
from sas_nb.atlas.places import load_zoo
from sas_nb.cache import data_path
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.known_models import by_kind, HUB, words_of
from sas_nb.prompt import Prompts
from sas_nb.memory import Memory
from sas_nb.recipe import Recipe, Run
from sas_nb.running import Stopped
from sas_nb.subjects import Subject

COMMANDS = ("models", "inspect", "train", "generate", "info", "export", "explore")
LOOK, MOVE = "a [v] woman in a red shirt and purple trousers in a park", "she is [u] dancing"
PROMPTS = ["--appearance", LOOK, "--motion", MOVE]
SHORT = ["--steps1", 1, "--steps2", 1, "--batch", 1, "--frames", 5, "--set", "both.prior=0", "--rank", 2, "--quiet", "--no-sheet"]
FEW = ["--steps", 2, "--frames", 5, "--quiet"]


def call(*words):
    "Run a command in this process."
    return CliRunner(env=dict(COLUMNS="120", FORCE_COLOR=None, CLICOLOR_FORCE=None)).invoke(cli.app, [str(w) for w in words])


def ok(*words):
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.output


def shell(*words, **kwargs):
    "Run Python in a process of its own."
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=120, **kwargs)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    "A cache of our own, for this process and those it starts."
    old, os.environ["SAS_NB_CACHE"] = os.environ.get("SAS_NB_CACHE"), str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["SAS_NB_CACHE"]
    if old: os.environ["SAS_NB_CACHE"] = old


@pytest.fixture(scope="session")
def dancer(): return data_path("clips/dancer.mp4")


@pytest.fixture(scope="session")
def trained(cache, dancer, tmp_path_factory):
    "The folder of a finished run of one step a stage."
    out = tmp_path_factory.mktemp("trained") / "run"
    ok("train", dancer, *PROMPTS, "--out", out, *SHORT)
    return out


def test_starts_without_the_heavy_imports():
    seen = shell("-c", "import sas_nb.cli, sys; print([m for m in ('torch', 'diffusers', 'transformers', 'peft', 'av') if m in sys.modules])")
    assert seen.stdout.strip() == "[]", seen.stderr


def test_a_prompt_without_a_place_is_told_before_training(tmp_path):
    words = ["train", "clips/dancer.mp4", "--appearance", "a [v] woman in a red shirt", "--motion", MOVE, "--out", tmp_path/"run", *SHORT]
    assert "Warning: The appearance prompt names no place" in " ".join(ok(*words).split())
    words[3] += " in a park"
    assert "names no place" not in ok(*words[:-len(SHORT)-1], tmp_path/"other", *SHORT)


def test_runs_as_a_module():
    done = shell("-m", "sas_nb.cli", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sas-nb {__version__}\n", "")


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_help_names_every_command(words):
    output = call(*words).output
    for name in COMMANDS: assert re.search(rf"^\W*{name}\b", output, re.M)
    assert "[v]" in output and "sas-nb train" in output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_in_examples(command):
    output = ok(command, "--help")
    assert f"$ sas-nb {command}" in output.partition("Examples")[2]


@pytest.mark.parametrize("words", [
    ["fly"], ["train"], ["inspect"], *(["train", "x.mp4", *PROMPTS, "--out", "o", *more] for more in (
        ["--steps1", "many"], ["--steps1", "-1"], ["--dropout1", "0.5"], ["--preset", "paper"], ["--set"]))])
def test_a_command_line_that_makes_no_sense_is_2(words): assert call(*words).exit_code == 2


@pytest.mark.parametrize("words, missing", [
    (["train"], "CLIP, --appearance, --motion, --out."), (["train", "x.mp4", "--motion", "she is [u] dancing"], "--appearance, --out."),
    (["export"], "CONCEPT, --out."), (["generate"], "CONCEPT."), (["plan"], "CLIP.")])
def test_all_that_is_missing_is_told_at_once(words, missing):
    result = call(*words)
    assert result.exit_code == 2 and f"Missing: {missing}" in result.output


@pytest.mark.parametrize("words, new", [
    (["generate", "run", "--strength", ".5"], "--motion-guidance"), (["generate", "run", "--against", ".5"], "--negative-scale"),
    (["train", "x.mp4", "--preset", "paper"], "--recipe")])
def test_an_option_by_its_earlier_name(words, new):
    result = call(*words)
    assert result.exit_code == 2 and re.search(rf"No such option:? '?{words[2]}\b", result.output) and new in result.output


@pytest.mark.parametrize("options, says", [(["--set", "stage1.dropuot=.5"], "near are stage1.dropout"), (["--recipe", "papr"], "no recipe 'papr'"), (["--set", "both.batch=0"], "--set both.batch=0 must be")])
def test_a_misspelt_recipe_is_refused_before_the_heavy_imports(options, says):
    code = f"import sys\nfrom sas_nb import cli\ntry: cli.app({['train', 'x.mp4', *PROMPTS, '--out', 'o', *options]})\nexcept SystemExit as e: print(e.code, [m for m in ('torch', 'diffusers', 'av') if m in sys.modules])"
    done = shell("-c", code)
    assert says in done.stderr and done.stdout.split(None, 1) == ["1", "[]\n"]


def test_the_help_says_that_a_movement_needs_no_word():
    assert "may stand alone" in " ".join(re.findall(r"[^\s│]+", ok("train", "--help")))


@pytest.mark.parametrize("word, near", [("foresst", " (near: forest)"), ("qqqq", "")])
def test_an_unknown_word_is_one_sentence_with_a_command_that_lists_all(trained, word, near):
    result = call("generate", trained, f"a [v] woman in the {word}. she is [u] dancing")
    said = " ".join(result.output.split())
    assert result.exit_code == 1 and f"'tiny' does not know '{word}'{near}: `sas-nb models --words tiny` lists" in said and len(said) < 160
    assert {"forest", "[u]"} <= set(ok("models", "--words", "tiny").split())


def test_the_words_of_a_base_are_listed_by_kind():
    lines = dict(line.split(":", 1) for line in ok("models", "--words", "tiny").splitlines())
    assert lines["New words"].split() == ["[v]", "[u]"] and "woman" in lines["People"] and "dancing" in lines["Movements"] and "night" in lines["Light"] and "snow" in lines["Scenes"]
    words = words_of("tiny")
    assert sorted(" ".join(lines.values()).split()) == sorted(words)  # each word once, none lost
    assert set(lines["Others"].split()) <= {"a", "an", "and", "are", "at", "holding", "in", "is", "on", "the", "wearing"}
    many = [*words, *(f"word{i}" for i in range(200))]
    assert by_kind(many) == " ".join(many)  # a base of a whole language: a plain list


def test_a_note_on_real_films_is_not_for_shipped_ones(dancer, tmp_path, monkeypatch):
    monkeypatch.setattr("sas_nb.learning.learn", lambda *a: 1/0)
    copy, other = tmp_path / "my copy.mp4", tmp_path / "other.mp4"
    copy.write_bytes(dancer.read_bytes())
    Clip.load(dancer).save(other)
    for film, noted in ((dancer, False), (copy, False), (other, True)):
        assert ("a real film becomes a smear" in call("train", film, *PROMPTS, "--out", tmp_path / "run").output) == noted, film
    assert "Note" not in call("train", other, *PROMPTS, "--out", tmp_path / "run", "--quiet").output


def test_models_says_what_is_here():
    output = ok("models")
    for name in ("tiny", *HUB, "Wan 2.1"): assert name in output
    assert "17 frames, 64x64" in output and "121 frames, 704x1280" in output and "height x width" in output

@pytest.mark.parametrize("command", [["inspect"], ["train", *PROMPTS, "--out", "nowhere"]], ids=lambda c: c[0])
def test_a_model_that_nobody_has_is_refused(dancer, command, monkeypatch):
    def no_network(): raise OSError("no network")
    monkeypatch.setattr("huggingface_hub.get_session", no_network)
    result = call(*command, dancer, "--model", "nobody/nothing")
    assert result.exit_code == 1 and "There is no model folder 'nobody/nothing', and the hub cannot be asked" in " ".join(result.output.split())


def test_inspect(dancer):
    assert "becomes" in ok("inspect", dancer)
    report = json.loads(ok("inspect", dancer, "--json", "--frames", 9, "--fps", 6, "--start", 0.5))
    assert (report["num_frames"], report["fps"], report["start"], report["size"]) == (9, 6, .5, [64, 64])


@pytest.fixture
def given(monkeypatch):
    "What `learn` was called with; nothing is learned."
    calls = {}
    def learn(clip, prompts, model, recipe, run, basis=None):
        calls.update(clip=clip, prompts=prompts, model=model, recipe=recipe, run=run, basis=basis)
        return type("C", (), dict(info=dict(history={})))
    monkeypatch.setattr("sas_nb.learning.learn", learn)
    return calls


def recipe_of(given, dancer, tmp_path, *options):
    ok("train", dancer, *PROMPTS, "--out", tmp_path / "run", "--quiet", "--no-sheet", *options)
    return given["recipe"]


def test_a_recipe_is_the_named_one_unless_told(given, dancer, tmp_path):
    for options, recipe in (([], Recipe.default()), (["--recipe", "paper"], Recipe.paper()),
                            (["--no-regularize", "--recipe", "paper"], Recipe.unregularised("paper"))):
        assert recipe_of(given, dancer, tmp_path, *options) == recipe
    assert given["run"] == Run(out=tmp_path / "run", progress=False)


@pytest.mark.parametrize("options, memory", [
    (["--weights", "int8", "--swapped", 2], dict(weights="int8", swapped=2)),
    (["--inputs-on-host", "--tiled", "--vae-bits", 16, "--text-bits", 8], dict(checkpointing=True, inputs_on_host=True, tiled=True, vae_bits=16, text_bits=8)),
    ([], None)], ids=str)
def test_wishes_about_memory_arrive(given, dancer, tmp_path, options, memory):
    recipe_of(given, dancer, tmp_path, *options)
    assert given["run"].memory == (memory and Memory(**memory))


def test_a_video_is_made_as_its_memory_is_wished(trained, tmp_path, monkeypatch):
    from sas_nb.dit import VideoDiT
    from sas_nb.files import UserError
    seen = []
    def denoise(self, *args, **kwargs):
        seen.append(self.memory)
        raise UserError("Enough.")
    monkeypatch.setattr(VideoDiT, "denoise", denoise)
    dit = VideoDiT.of("tiny")
    before, said = dit.memory, dit.memory_given
    try:
        assert "Enough." in call("generate", trained, "--weights", "int8", "--out", tmp_path / "a.mp4", "-q").output
        assert seen == [Memory(weights="int8")]
    finally: dit.memory, dit.memory_given = before, said


def test_every_training_option_arrives(given, dancer, tmp_path):
    prompts = ["a man. he is walking", "a woman. she is waving"]
    recipe = recipe_of(
        given, dancer, tmp_path, "--model", "tiny", "--recipe", "paper", "--rank", 3, "--seed", 5, "--steps1", 11,
        "--steps2", 12, "--lr", .01, "--batch", 2, "--prior-prompt", prompts[0], "--prior-prompt", prompts[1],
        "--counterfactual", "a dog. it is running", "--sample-every", 6, "--sample-steps", 4, "--save-every", 7, "--checkpointing",
        "--at-once", 8, "--frames", 9, "--fps", 6, "--start", .5, "--set", "stage2.counterfactuals=.25",
        "--set", "both.frozen=true", "--set", "stage1.dropout=.1", "--set", "sampling.negative_scale=1",
        "--set", "both.betas=.8,.9", "--set", "both.times=uniform", "--set", "layers=blocks.0.ffn.net.2")
    clip = given["clip"]
    assert (len(clip), clip.fps, clip.report.start, given["model"]) == (9, 6, .5, "tiny")
    assert given["prompts"] == Prompts(LOOK, MOVE)
    assert given["run"] == Run(out=tmp_path / "run", progress=False, sample_every=6, sample_steps=4, save_every=7,
                               memory=Memory(checkpointing=True, at_once=8))
    both = dict(lr=.01, batch=2, seed=5, frozen=True, betas=(.8, .9), times="uniform")
    assert recipe == Recipe.paper().with_(
        both=both, stage1=dict(steps=11, dropout=.1), stage2=dict(steps=12, counterfactuals=.25), rank=3,
        sampling=dict(negative_scale=1), layers="blocks.0.ffn.net.2", prior_prompts=tuple(prompts),
        counterfactual=("a dog. it is running",))


def test_a_recipe_from_a_file_and_from_a_run(given, dancer, trained, tmp_path):
    mine = Recipe.paper().with_(rank=5, stage1=dict(shift=2.), prior_prompts=("a man. he is walking",))
    mine.save(tmp_path / "mine.json")
    assert recipe_of(given, dancer, tmp_path, "--recipe", tmp_path / "mine.json") == mine
    again = [recipe_of(given, dancer, tmp_path, "--recipe", p)
             for p in (trained, trained / "concept", trained / "concept/concept.json")]
    assert again == [Recipe.load(trained / "concept/concept.json")] * 3
    assert (again[0].stage1.steps, again[0].stage1.prior, again[0].rank) == (1, 0, 2)
    changed = recipe_of(given, dancer, tmp_path, "--recipe", trained, "--rank", 3)
    assert (changed.rank, changed.stage1) == (3, again[0].stage1)


def test_the_recipe_of_an_earlier_versions_concept(given, dancer, trained, tmp_path):
    old = shutil.copytree(trained, tmp_path / "old")
    about = json.loads((old / "concept/concept.json").read_text())
    del about["recipe"]
    settings = dict(steps=3, dropout=.25, token_start=.5, still=True, log_every=10, lr=None)
    about |= dict(settings=dict(identity=settings, motion=settings | dict(twins=.5)), preset="ours",
                  sampling=dict(guidance_factor=.5, against=.7), history=dict(identity=[], motion=[]))
    (old / "concept/concept.json").write_text(json.dumps(about))
    recipe = recipe_of(given, dancer, tmp_path, "--recipe", old)
    ours = dict(steps=3, dropout=.25, token_init=.5, frozen=True)
    assert (recipe.name, recipe.rank, recipe.sampling.negative_scale) == ("default", 2, .7)
    assert recipe.stage1 == replace(Recipe.paper().stage1, **ours)
    assert recipe.stage2.counterfactuals == .5
    words = " ".join(ok("info", old).split())
    assert "stage 1, appearance" in words and "3 steps, dropout 0.25" in words and "recipe │ default" in words


def refused(dancer, tmp_path, *options):
    result = call("train", dancer, *PROMPTS, "--out", tmp_path / "run", *SHORT, *options)
    assert result.exit_code == 1 and result.output.count("\n") == 1 and result.output.startswith("Error: ")
    return result.output


@pytest.mark.parametrize("options, says", [
    (["--set", "stage1.dropuot=.5"], "near are stage1.dropout"), (["--set", "rnak=4"], "near are rank"),
    (["--set", "dropout=.5"], "stage1.dropout"), (["--set", "xyzzy=1"], "near are stage1.dropout"),
    (["--set", "stage1.name=motion"], "no number 'stage1.name'"), (["--set", "rank"], "has no value"),
    (["--set", "stage1.dropout=1.5"], "--set stage1.dropout=1.5 must be a number from 0"),
    (["--set", "stage2.dropout=a lot"], "--set stage2.dropout='a lot' must be"),
    (["--set", "both.frozen=3"], "--set both.frozen=3 must be true or false"),
    (["--set", "both.betas=.9"], "must be 2 numbers"), (["--set", "both.betas=.9,5"], "betas"),
    (["--set", "both.times=never"], "'uniform' or 'logit_normal'"), (["--set", "rank=0"], "--rank 0"),
    (["--set", "rank=many"], "--rank 'many'"), (["--set", "layers=("], "("), (["--set", "both.seed=x"], "seed='x'"),
    (["--set", "sampling.negative_scale=nan"], "negative_scale"), (["--set", "sampling.guidance_factor=x"], "factor"),
    (["--recipe", "ours"], "default or paper"), (["--recipe", "no/such"], "default or paper"),
    (["--recipe", "zoo.json"], "recipe"), (["--no-regularize", "--recipe", "run"], "--no-regularize goes with"),
    (["--recipe", "paper", "--counterfactual", "a man. he is running"], "--set stage2.counterfactuals=0.5"),
])
def test_a_recipe_that_cannot_be(options, says, dancer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("zoo.json").write_text('{"stage1": 3, "stage2": []}')
    assert says in refused(dancer, tmp_path, *options)
    assert [p.name for p in tmp_path.iterdir()] == ["zoo.json"]


def test_train_writes_a_run_and_finds_it_again(dancer, trained):
    files = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    assert {"appearance.ckpt.safetensors", "motion.ckpt.safetensors", "log.jsonl", "concept/concept.json", "concept/concept.safetensors"} <= files
    before = load_file(trained / "concept/concept.safetensors")
    output = ok("train", dancer, *PROMPTS, "--out", trained, *SHORT)
    after = load_file(trained / "concept/concept.safetensors")
    assert str(trained / "concept") in output and all(before[k].equal(after[k]) for k in before)
    assert "In 1 + 1 steps little is learned" in " ".join(output.split())


def test_only_few_steps_are_told():
    from sas_nb.answers import _few_steps
    usual = Recipe.default()
    assert not _few_steps(usual.to_dict()) and not _few_steps(Recipe.paper().to_dict())
    assert _few_steps(usual.with_(stage1=dict(steps=0), stage2=dict(steps=20)).to_dict()).startswith("In 0 + 20 steps")


def test_train_over_the_basis_of_another(dancer, trained, tmp_path):
    known = load_file(trained / "concept/concept.safetensors")
    out = tmp_path / "friend"
    ok("train", dancer, *PROMPTS, "--out", out, *SHORT, "--basis", trained, "--seed", 3)
    own = load_file(out / "concept/concept.safetensors")
    A = [k for k in own if k.endswith(".A")]
    assert A and all(own[k].equal(known[k]) for k in A) and any(not own[k].equal(known[k]) for k in own if k.endswith(".B1"))
    ok("train", dancer, *PROMPTS, "--out", tmp_path / "guest", *SHORT, "--basis", "zoo")
    guest, member = Concept.load(tmp_path / "guest"), load_zoo(names=["woman-00"])["woman-00"]
    assert guest.layers == member.layers and all(guest.weights[k].equal(w) for k, w in member.weights.items() if k.endswith(".A"))
    assert "--basis takes a concept's folder, or the word zoo; " in call("train", dancer, *PROMPTS, "--out", out, *SHORT, "--basis", tmp_path / "nobody").output


def test_generate(trained, tmp_path):
    folders, clips = (trained, trained / "concept"), []
    for k, folder in enumerate(folders):
        out = tmp_path / "new" / f"{k}.mp4"
        assert str(out) in ok("generate", folder, "--out", out, *FEW)
        clips.append(Clip.load(out))
    assert len(clips[0]) == 5 and clips[0].frames.equal(clips[1].frames)
    ok("generate", trained, "a [v] woman in the snow. she is [u] dancing", "--out", tmp_path / "edit.gif", "--seed", 1, "--guidance", 1, "--appearance", .5, "--motion", 0, "--negative", "a man", *FEW)
    assert not Clip.load(tmp_path / "edit.gif", size=(64, 64)).frames.equal(Clip.load(tmp_path / "new/0.mp4", size=(64, 64)).frames)
    calm = tmp_path / "calm.gif"
    ok("generate", trained, "--out", calm, "--motion-guidance", .5, "--negative-scale", 1, *FEW)
    assert calm.stat().st_size


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".gif"])
def test_only_a_video_of_ours_is_replaced(trained, tmp_path, monkeypatch, suffix):
    out = tmp_path / f"out{suffix}"
    for seed in (0, 1): ok("generate", trained, "--out", out, "--seed", seed, *FEW)
    shutil.copy(data_path("clips/dancer.mp4"), out)
    before = out.read_bytes()
    for owner in (cli, scenes): monkeypatch.setattr(owner, "write_video", None)  # refused before
    for words in (["generate", trained], ["compose", "zoo/man-16", "zoo/man-21"]):
        result = call(*words, "--out", out)
        assert result.exit_code == 1 and "this program did not write it" in result.output and out.read_bytes() == before


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_only_a_picture_of_ours_is_replaced(dancer, tmp_path, suffix):
    out = tmp_path / f"seen{suffix}"
    for start in (0, 1): ok("inspect", dancer, "--start", start, "--picture", out)
    Image.new("RGB", (8, 8)).save(out)
    before = out.read_bytes()
    result = call("inspect", dancer, "--picture", out)
    assert result.exit_code == 1 and "this program did not write it" in result.output and out.read_bytes() == before


def test_somebody_of_a_zoo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    about = json.loads(ok("info", "zoo/man-16", "--json"))
    assert about["appearance"] == "a [v] man in a park" and about["sampling"]["edit_guidance"] == 3
    ok("generate", "zoo/man-16", "a [v] man in the snow. he is [u] dancing", "--steps", "1", "--frames", "5", "--edit-guidance", "2", "--out", tmp_path/"man.mp4")
    assert len(Clip.load(tmp_path/"man.mp4")) == 5
    failed = call("info", "zoo/nobody")
    assert failed.exit_code == 1 and "There is no 'nobody' in the zoo" in " ".join(failed.output.split())
    failed = call("info", "nothing/man-16")
    assert failed.exit_code == 1 and "There is no folder 'nothing/man-16'" in " ".join(failed.output.split())


def test_info_of_several(trained):
    c = Concept.load(trained)
    subjects = [Subject("dancer", Prompts("a [v1] woman", "she is [u1] dancing"), (0, 0, .5, 1)), Subject("waves", Prompts("[v2] waves", "[u2]"))]
    recipe = Recipe.default().together(2).with_(stage1=dict(steps=1)).to_dict()
    rows = dict(provenance(replace(c, info=c.info | dict(subjects=[s.to_dict() for s in subjects], recipe=recipe))))
    assert rows["subject 1"] == "dancer, at 0, 0, 0.5, 1: a [v1] woman. she is [u1] dancing" and rows["subject 2"] == "waves: [v2] waves. [u2]"
    assert rows["clips"].startswith("dancer, waves: 5 frames, 64 wide, 64 high") and "clip" not in rows and rows["recipe"] == "default, 2 together, changed" and rows["changed"] == "stage1.steps 1 instead of 150"



def test_info(trained):
    about, output = json.loads(ok("info", trained, "--json")), ok("info", trained, "--layers")
    norms = about["norms"]
    assert about["appearance"] == LOOK and all(layer in output for layer in norms)
    for k in (0, 1): assert f"{sum(n[k] ** 2 for n in norms.values()) ** .5:.4f}" in output
    for words in (LOOK, MOVE, "rank", about["fingerprint"], "1 steps", __version__): assert words in output
    assert "appearance |B1 A|" in output and "motion |B2 A|" in output and "A1" not in output
    words = " ".join(re.findall(r"[^\s│]+", output))
    assert "default, changed" in output and "rank 2 instead of 8, stage1.steps 1 instead of 75" in words and "both.batch 1 instead of 8" in words
    assert output.index("Provenance") < output.index("How far each layer") < output.index("norm of its vector")
    assert "Compare appearance with motion" in " ".join(output.split()) and f"weights of its transformer: {about['fingerprint']}" in words
    short = ok("info", trained)
    assert next(iter(norms)) not in short and "norm" not in short and "|A B" not in short  # numbers without a scale only where asked for


@pytest.mark.parametrize("recipe, says", [
    (Recipe.paper().with_(stage2=dict(betas=(.9, .95)), sampling=dict(negative_scale=.5)), "stage2.betas [0.9, 0.95] instead of [0.9, 0.99], sampling.negative_scale 0.5 instead of 1.0"),
    (Recipe.unregularised("paper").with_(both=dict(seed=3)), "both.seed 3 instead of 0"),
    (Recipe.default().with_(both=dict(batch=4)).with_(stage1=dict(batch=2)), "stage1.batch 2 instead of 8, stage2.batch 4 instead of 8"),
    (Recipe.default(), ""), (replace(Recipe.default().with_(rank=2), name="mine, changed"), "")])
def test_what_was_changed_in_a_recipe(recipe, says): assert changes(recipe.to_dict()) == says


@pytest.mark.parametrize("format, name", [("diffusers", "pytorch_lora_weights.safetensors"), ("peft", "adapter_model.safetensors")])
def test_export(trained, tmp_path, format, name):
    ok("export", trained, "--format", format, "--out", tmp_path / "one")
    assert (tmp_path / "one" / name).exists() and (tmp_path / "one/README.md").exists()
    ok("export", trained, "--format", format, "--split", "--out", tmp_path / "two")
    assert all((tmp_path / "two" / part / name).exists() for part in ("appearance", "motion"))


def test_export_says_what_is_lost(trained, tmp_path):
    assert "are lost" not in ok("export", trained, "--out", tmp_path / "one")
    assert "[u] and [v] are lost in ComfyUI, which reads no vectors: folded ones are not." in " ".join(ok("export", trained, "--format", "comfyui", "--out", tmp_path / "two").split())
    said = " ".join(ok("export", trained, "--words", "folded", "--out", tmp_path / "three").split())
    assert re.search(r"Of what \[u\] and \[v\] change in samples, \d+ % stays|folding them into the LoRA did not help", said), said




def raising(e):
    def f(*args, **kwargs): raise e
    return f


@pytest.mark.parametrize("e, code, says", [
    (KeyboardInterrupt("Stopped after step 3"), 130, "Stopped after step 3"),
    (KeyboardInterrupt(), 130, "same command"),
    (Stopped("Stopped after step 3", signal.SIGTERM), 143, "Stopped after step 3"),
    (Stopped(), 130, "same command"),
    (KeyError("wings"), 1, "KeyError: 'wings'"),
    (OSError(28, "No space left on device", "log.jsonl"), 1, "No space left on device"),
    (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB\nmore"), 1, "--checkpointing")])
def test_what_goes_wrong_is_one_line_and_an_exit_code(monkeypatch, e, code, says):
    monkeypatch.setattr(cli, "load_clip", raising(e))
    result = call("inspect", "x.mp4")
    assert result.exit_code == code and says in result.output
    assert result.output.count("\n") == 1 and "Traceback" not in result.output
    assert ("SAS_NB_DEBUG" in result.output) == isinstance(e, KeyError)


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_is_one_line_and_its_exit_code(monkeypatch, name, code):
    s = getattr(signal, name)
    handlers = [signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(s)]
    monkeypatch.setattr(cli, "load_clip", lambda *args: signal.raise_signal(s))
    try:
        result = call("inspect", "x.mp4")
        assert result.exit_code == code and "nothing is left half-written" in result.output and result.output.count("\n") == 1
        assert signal.getsignal(s) == (signal.default_int_handler if name == "SIGINT" else handlers[1])
    finally: signal.signal(signal.SIGINT, handlers[0])


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("SAS_NB_DEBUG", "1")
    monkeypatch.setattr(cli, "load_clip", raising(KeyError("wings")))
    assert isinstance(call("inspect", "x.mp4").exception, KeyError)
