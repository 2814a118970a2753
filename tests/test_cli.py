"""The command line: what each command prints, writes and answers with, in this process and in a real one."""
import json, os, re, signal, subprocess, sys

os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"  # or typer colours its help where it believes to be on GitHub
import pytest, typer
from safetensors.torch import load_file
from typer.testing import CliRunner
from sas_nb import __version__, cli
from sas_nb.cache import data_path
from sas_nb.clip import Clip
from sas_nb.running import Stopped

COMMANDS = ("models", "inspect", "train", "generate", "info", "export", "explore")
LOOK, MOVE = "a [v] woman in a red shirt and purple trousers in a park", "she is [u] dancing"
PROMPTS = ["--appearance", LOOK, "--motion", MOVE]
SHORT = ["--steps1", 1, "--steps2", 1, "--batch", 1, "--frames", 5, "--prior", 0, "--rank", 2, "--quiet", "--no-sheet"]
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


@pytest.mark.parametrize("words", [["fly"], ["train"], ["inspect"], ["train", "x.mp4", *PROMPTS, "--out", "o", "--steps1", "many"], ["train", "x.mp4", *PROMPTS, "--out", "o", "--steps1", "-1"],
                                   ["train", "x.mp4", *PROMPTS, "--out", "o", "--no-regularize", "--dropout1", "0.5"]])
def test_a_command_line_that_makes_no_sense_is_2(words): assert call(*words).exit_code == 2


def test_models_says_what_is_here():
    output = ok("models")
    for name in ("tiny", *cli.HUB, "WanPipeline"): assert name in output
    assert "17 frames, 64 x 64" in output


def test_inspect(dancer):
    assert "becomes" in ok("inspect", dancer)
    report = json.loads(ok("inspect", dancer, "--json", "--frames", 9, "--fps", 6, "--start", 0.5))
    assert (report["num_frames"], report["fps"], report["start"], report["size"]) == (9, 6, .5, [64, 64])


def test_settings_are_the_presets_unless_told():
    from sas_nb.residual import preset_settings
    assert cli.stages(True, {}, {}, {}) == preset_settings("ours") and cli.stages(True, dict(batch=None), {}, {}, "paper") == preset_settings("paper")
    first, second = cli.stages(True, {}, {}, {}, "paper")
    assert (first.steps, second.steps, first.dropout, second.dropout, first.prior) == (600, 900, .8, .5, .25)
    first, second = cli.stages(False, dict(lr=None, batch=3), dict(steps=None), dict(steps=7), "paper")
    assert (first.steps, second.steps, first.batch, second.batch) == (150, 7, 3, 3)
    with pytest.raises(typer.BadParameter, match="prior"): cli.stages(False, dict(prior=.5), {}, {})


def test_every_training_option_arrives(dancer, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("sas_nb.concept.learn", lambda *args, **kwargs: given.update(args=args, kwargs=kwargs) or type("C", (), dict(info=dict(history={}))))
    ok("train", dancer, *PROMPTS, "--out", tmp_path, "--model", "tiny", "--rank", 3, "--seed", 5, "--steps1", 11, "--steps2", 12, "--lr", .01, "--token-lr", .02, "--token-start", .3, "--batch", 2, "--prior", .5,
       "--prior-prompt", "a man. he is walking", "--prior-prompt", "a woman. she is waving", "--dropout1", .1, "--dropout2", .2, "--token-mask", .3, "--self-conditioning", .4, "--twins", .25, "--twin-prompt", "a dog. it is running",
       "--sample-every", 6, "--save-every", 7, "--checkpointing", "--frames", 9, "--fps", 6, "--start", .5, "--preset", "paper", "--quiet", "--no-sheet")
    clip, appearance, motion, model, out, rank, first, second = given["args"]
    assert (len(clip), clip.fps, clip.report.start, appearance, motion, model, out, rank) == (9, 6, .5, LOOK, MOVE, "tiny", tmp_path, 3)
    assert given["kwargs"] == dict(preset="paper", regularize=True, prior_prompts=["a man. he is walking", "a woman. she is waving"], twin_prompt="a dog. it is running", progress=False)
    assert (first.twins, second.twins) == (0., .25), "twins are stage 2's"
    for s, steps, dropout in ((first, 11, .1), (second, 12, .2)):
        assert (s.steps, s.dropout, s.lr, s.token_lr, s.token_start, s.batch, s.prior, s.token_mask, s.self_conditioning, s.sample_every, s.save_every, s.checkpointing, s.seed) == (steps, dropout, .01, .02, .3, 2, .5, .3, .4, 6, 7, True, 5)


def test_train_writes_a_run_and_finds_it_again(dancer, trained):
    files = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    assert {"identity.ckpt.safetensors", "motion.ckpt.safetensors", "log.jsonl", "concept/concept.json", "concept/concept.safetensors"} <= files
    before = load_file(trained / "concept/concept.safetensors")
    output = ok("train", dancer, *PROMPTS, "--out", trained, *SHORT)
    after = load_file(trained / "concept/concept.safetensors")
    assert str(trained / "concept") in output and all(before[k].equal(after[k]) for k in before)


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
    ok("generate", trained, "--out", calm, "--strength", .5, "--against", 1, *FEW)
    assert calm.stat().st_size


def test_info(trained):
    about, output = json.loads(ok("info", trained, "--json")), ok("info", trained, "--layers")
    norms = about["norms"]
    assert about["appearance"] == LOOK and all(layer in output for layer in norms)
    for k in (0, 1): assert f"{sum(n[k] ** 2 for n in norms.values()) ** .5:.4f}" in output
    for words in (LOOK, MOVE, "rank", about["fingerprint"], "1 steps", __version__): assert words in output
    assert output.index("Provenance") < output.index("How far each layer") and next(iter(norms)) not in ok("info", trained)


@pytest.mark.parametrize("format, name", [("diffusers", "pytorch_lora_weights.safetensors"), ("peft", "adapter_model.safetensors")])
def test_export(trained, tmp_path, format, name):
    ok("export", trained, "--format", format, "--out", tmp_path / "one")
    assert (tmp_path / "one" / name).exists() and (tmp_path / "one/README.md").exists()
    ok("export", trained, "--format", format, "--split", "--out", tmp_path / "two")
    assert all((tmp_path / "two" / part / name).exists() for part in ("identity", "motion"))


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
    monkeypatch.setattr(cli, "_load", raising(e))
    result = call("inspect", "x.mp4")
    assert result.exit_code == code and says in result.output
    assert result.output.count("\n") == 1 and "Traceback" not in result.output
    assert ("SAS_NB_DEBUG" in result.output) == isinstance(e, KeyError)


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_is_one_line_and_its_exit_code(monkeypatch, name, code):
    s = getattr(signal, name)
    handlers = [signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(s)]
    monkeypatch.setattr(cli, "_load", lambda *args: signal.raise_signal(s))
    try:
        result = call("inspect", "x.mp4")
        assert result.exit_code == code and "nothing is left half-written" in result.output and result.output.count("\n") == 1
        assert signal.getsignal(s) == (signal.default_int_handler if name == "SIGINT" else handlers[1])
    finally: signal.signal(signal.SIGINT, handlers[0])


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("SAS_NB_DEBUG", "1")
    monkeypatch.setattr(cli, "_load", raising(KeyError("wings")))
    assert isinstance(call("inspect", "x.mp4").exception, KeyError)
