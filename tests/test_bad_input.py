"""What people really hand to a program: each mistake is one sentence and a non-zero exit, and leaves nothing half-made behind."""
import json, re, shutil, signal, subprocess, sys, time, wave
import pytest, torch
from safetensors import safe_open
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.files import UserError
from sas_nb.learning import learn
from sas_nb.recipe import Run
from test_cli import FEW, LOOK, MOVE, PROMPTS, SHORT, cache, call, dancer, ok, shell, trained  # noqa: F401, the fixtures among them


def sentence(output, code):
    "The one sentence of an error."
    assert code == 1, output
    assert output.count("\n") == 1, output
    assert output.startswith("Error: ") and re.search(r"[.!?…]$", output.strip()), output
    assert not re.search(r"[.!?] [A-Z]", output), f"more than one sentence: {output}"
    for word in ("Traceback", "Something went wrong", "site-packages"): assert word not in output
    return output


def refused(*words):
    "Call a command that must fail, and give its sentence."
    result = call(*words)
    return sentence(result.output, result.exit_code)


def half_written(folder):
    "Temporary files, weights and videos: what a failed command must not leave."
    return [p for p in folder.rglob("*") if p.name.startswith(".") or p.suffix in (".safetensors", ".mp4", ".tmp")]


# files that are no clip

def sound(path):
    with wave.open(str(path), "wb") as f:
        f.setparams((1, 2, 8000, 0, "NONE", ""))
        f.writeframes(bytes(16000))

def cut(path, where):
    Clip(torch.rand(17, 3, 64, 64), 12).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:where(data)])

def folder(path):
    path.mkdir()
    (path / "notes.txt").write_text("no images")

BAD = {
    "text.mp4": (lambda p: p.write_text("not a video\n" * 99), "cannot be read as a video"),
    "picture.mp4": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "p"),
    "no-index.mp4": (lambda p: cut(p, lambda data: 300), "cut off"),
    "no-pictures.mp4": (lambda p: cut(p, lambda data: data.index(b"mdat") + 20), "could be decoded"),
    "sound.wav": (sound, "only sound"),
    "one.mp4": (lambda p: Clip(torch.rand(1, 3, 64, 64), 12).save(p), "gives one picture"),
    "empty.mp4": (lambda p: p.touch(), "0 bytes"),
    "frames": (folder, "no images"),
    "missing.mp4": (lambda p: None, "There is no file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_clip(name, tmp_path):
    make, says = BAD[name]
    path, out = tmp_path / name, tmp_path / "run"
    make(path)
    assert says in refused("inspect", path)
    assert name in refused("train", path, *PROMPTS, "--out", out, *SHORT[:6])
    assert not out.exists()


LIGHT = """
import sys
from sas_nb.cli import app
try: app(sys.argv[1:])
except SystemExit as e: print("torch" in sys.modules, e.code)
"""
NOWHERE = {
    "inspect": ["nothing.mp4"], "plan": ["nothing.mp4"], "train": ["nothing.mp4", *PROMPTS, "--out", "run"],
    "generate": ["nothing"], "info": ["nothing"], "export": ["nothing", "--out", "lora"]}


@pytest.mark.parametrize("command", NOWHERE)
def test_a_wrong_name_is_answered_before_torch_is_loaded(command, tmp_path):
    told = subprocess.run([sys.executable, "-c", LIGHT, command, *NOWHERE[command]], cwd=tmp_path, text=True, capture_output=True)
    assert told.stdout.split() == ["False", "1"] and "'nothing" in told.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options, says", [(["--start", 99], "--start 99"), (["--frames", 16], "4n + 1"), (["--fps", 0], "--fps 0"), (["--start", -1], "--start -1"), (["--model", "huge"], "huge")])
def test_a_wish_that_the_clip_cannot_fulfil(options, says, dancer): assert says in refused("inspect", dancer, *options)


@pytest.mark.parametrize("ask", [lambda x: learn(x, (LOOK, MOVE)), lambda x: Clip.load(x), lambda x: Run(out=x if x is not None else 5), lambda x: Concept.load(x)])
@pytest.mark.parametrize("what", [5, None])
def test_what_is_no_name_of_a_file(ask, what):
    with pytest.raises(UserError, match="its name in quotes"): ask(what)


# prompts and settings

@pytest.mark.parametrize("look, move, says", [
    ("a woman in a park", MOVE, "[v]"),
    (LOOK, "she is dancing", "[u]"),
    ("a [v] [w] woman in a park", MOVE, "[w]"),
    ("a [v] womman in a park", MOVE, "'womman' (near: woman"),
    (LOOK, "she is [u] dancin", "'dancin' (near: dancing"),
    ("a [v] zzyzx in a park", MOVE, "'zzyzx'"),
], ids=["no [v]", "no [u]", "[w]", "womman", "dancin", "zzyzx"])
def test_a_prompt_that_does_not_work(look, move, says, dancer, tmp_path):
    assert says in refused("train", dancer, "--appearance", look, "--motion", move, "--out", tmp_path / "run", *SHORT)
    assert not (tmp_path / "run").exists()


def test_an_edit_with_an_unknown_word(trained, tmp_path):
    assert "'foresst' (near: forest" in refused("generate", trained, "a [v] woman in a foresst", "--out", tmp_path / "x.mp4", *FEW)
    assert not half_written(tmp_path)


@pytest.mark.parametrize("options, says", [(["--rank", 0], "rank"), (["--set", "stage1.dropout=1.5"], "dropout"), (["--lr", -1], "lr"), (["--set", "both.prior=-1"], "prior"), (["--model", "no/such/model"], "no/such/model")])
def test_a_setting_that_cannot_work(options, says, dancer, tmp_path):
    assert says in refused("train", dancer, *PROMPTS, "--out", tmp_path / "run", *SHORT, *options)
    assert not half_written(tmp_path)


# concepts that are none, or not for this model

@pytest.fixture
def copy(trained, tmp_path):
    "A concept of our own to damage."
    return shutil.copytree(trained / "concept", tmp_path / "concept")


def change(concept, **values):
    path = concept / "concept.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))

def corrupt(concept): (concept / "concept.safetensors").write_bytes(b"\xff" * 64)
def shorten(concept): (concept / "concept.safetensors").write_bytes((concept / "concept.safetensors").read_bytes()[:-100])
def no_weights(concept): (concept / "concept.safetensors").unlink()
def no_json(concept): (concept / "concept.json").unlink()
def half_json(concept): (concept / "concept.json").write_text('{"base": ')


@pytest.mark.parametrize("damage, says", [
    (corrupt, "damaged"), (shorten, "damaged"), (no_weights, "damaged"), (half_json, "damaged"), (no_json, "is not a concept"), (lambda c: shutil.rmtree(c), "There is no folder"),
    (lambda c: change(c, fingerprint="0" * 16), "another base"), (lambda c: change(c, rank=3), "rank"), (lambda c: change(c, base="gone"), "gone"),
], ids=["corrupt", "cut off", "no weights", "half json", "no json", "no folder", "another base", "another rank", "base gone"])
def test_a_concept_that_is_none(damage, says, copy, tmp_path):
    damage(copy)
    assert says in refused("generate", copy, "--out", tmp_path / "x.mp4", *FEW)
    if says in ("damaged", "is not a concept", "There is no folder"):
        assert says in refused("info", copy)
        assert says in refused("export", copy, "--out", tmp_path / "lora")
    assert not (tmp_path / "x.mp4").exists() and not (tmp_path / "lora").exists()


def test_a_good_concept_still_works_afterwards(trained, tmp_path): ok("generate", trained, "--out", tmp_path / "x.mp4", *FEW)


def test_names_and_formats_that_do_not_exist(trained, tmp_path):
    assert ".mp4" in refused("generate", trained, "--out", tmp_path / "clip.avi", *FEW)
    assert "pickle" in refused("export", trained, "--format", "pickle", "--out", tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


# runs that cannot go on

def test_a_folder_with_another_run(dancer, trained): assert "holds another run (another lr: was " in refused("train", dancer, *PROMPTS, "--out", trained, *SHORT, "--lr", .5)


def test_a_log_of_ones_own(dancer, tmp_path, monkeypatch):
    monkeypatch.setattr("sas_nb.learning.learn", None)  # refused before
    (tmp_path/"log.jsonl").write_text("notes")
    assert "is not the log of a training" in refused("train", dancer, *PROMPTS, "--out", tmp_path, *SHORT)
    assert (tmp_path/"log.jsonl").read_text() == "notes"


def test_a_damaged_checkpoint(dancer, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "appearance.ckpt.safetensors").write_bytes(b"{}")
    assert "damaged" in refused("train", dancer, *PROMPTS, "--out", run, *SHORT)


def test_a_loss_that_is_not_a_number(dancer, tmp_path, monkeypatch):
    monkeypatch.setattr("sas_nb.train.loss_per_sample", lambda prediction, target: prediction.flatten(1).sum(1) * float("nan"))
    said = refused("train", dancer, *PROMPTS, "--out", tmp_path / "run", *SHORT)
    assert "NaN" in said and "lower lr" in said
    assert not half_written(tmp_path)


# disks that refuse

@pytest.fixture
def disk(tmp_path):
    "A disk of 64 KB."
    path = tmp_path / "disk"
    path.mkdir()
    try: mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True).returncode == 0
    except OSError: mounted = False
    if not mounted: pytest.skip("only root may mount a small disk")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(disk):
    with pytest.raises(OSError), open(disk / "full", "wb", buffering=0) as f:
        while True: f.write(bytes(4096))


def write_to(disk, dancer, trained):
    "Every command that writes, writing to the disk; their sentences."
    yield refused("train", dancer, *PROMPTS, "--out", disk / "run", *SHORT)
    yield refused("generate", trained, "--out", disk / "x.mp4", *FEW)
    yield refused("export", trained, "--out", disk / "lora")


def test_a_full_disk(disk, dancer, trained):
    fill(disk)
    for said in write_to(disk, dancer, trained): assert "disk is full" in said
    assert [p.name for p in disk.rglob("*")] == ["full"]


def test_a_disk_too_small_for_the_run(disk, dancer):
    assert "free some space" in refused("train", dancer, *PROMPTS, "--out", disk / "run", *SHORT)
    assert not half_written(disk)


def test_a_disk_that_fills_up_while_training(disk, dancer, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, 2**40))
    assert "disk is full" in refused("train", dancer, *PROMPTS, "--out", disk / "run", *SHORT)
    assert not half_written(disk)


def test_a_read_only_disk(disk, dancer, trained):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for said in write_to(disk, dancer, trained): assert "read-only" in said


def test_a_file_where_a_folder_should_be(dancer, trained, tmp_path):
    (tmp_path / "file").write_text("precious")
    for where in ("file", "file/deeper"):
        refused("train", dancer, *PROMPTS, "--out", tmp_path / where, *SHORT)
        refused("export", trained, "--out", tmp_path / where)
    (tmp_path / "x.mp4").mkdir()
    refused("generate", trained, "--out", tmp_path / "x.mp4", *FEW)
    assert (tmp_path / "file").read_text() == "precious" and sorted(p.name for p in tmp_path.rglob("*")) == ["file", "x.mp4"]


# the same in a real terminal's process

def test_a_real_process_says_only_the_sentence(tmp_path):
    done = shell("-m", "sas_nb.cli", "inspect", tmp_path / "missing.mp4")
    assert done.stdout == "" and "missing.mp4" in sentence(done.stderr, done.returncode)


def test_ctrl_c_keeps_the_run(dancer, tmp_path):
    run, log = tmp_path / "run", tmp_path / "stderr"
    long = [*SHORT, "--save-every", 1, "--steps1", 100000]
    words = [sys.executable, "-m", "sas_nb.cli", "train", dancer, *PROMPTS, "--out", run, *long]
    with open(log, "w") as f: p = subprocess.Popen([str(w) for w in words], stderr=f, stdout=f, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        checkpoint, patience = run / "appearance.ckpt.safetensors", time.monotonic() + 90
        while not checkpoint.exists() and p.poll() is None and time.monotonic() < patience: time.sleep(.05)
        p.send_signal(signal.SIGINT)
        code = p.wait(30)
    finally: p.kill()
    said = log.read_text()
    assert code == 130 and said.startswith("Stopped after step") and str(run) in said and said.count("\n") == 1, said
    assert {p.name for p in half_written(run)} == {checkpoint.name, "appearance.data.safetensors"}
    with safe_open(checkpoint, "pt") as f: step = json.loads(f.metadata()["sas_nb"])["step"]
    assert f"after step {step} of" in said
    ok("train", dancer, *PROMPTS, "--out", run, *SHORT, "--steps1", step + 1)
    assert (run / "concept/concept.json").exists()
