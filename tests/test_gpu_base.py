"A base by the clock, at toy length on a CPU: what it leaves behind, when it stops, and what survives a part that fails."
import json, os, re, subprocess, sys, time
from importlib.metadata import distributions, requires
from pathlib import Path
import numpy as np, pytest, torch
from packaging.requirements import Requirement
from typer.testing import CliRunner
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.lab.tiny import latent_shape, load_autoencoder, TEMPORAL_2, tiny_autoencoder

SCRIPT = Path(__file__).parent.parent/"scripts"/"gpu_base.py"
SIZES = dict(batch=1, clips=2, images=2, latents=8, fresh=1, ring=16, first=16, uses=2, workers=2, save=.2)


@pytest.fixture(scope="module")
def base():
    import gpu_base
    return gpu_base

@pytest.fixture(scope="module")
def start(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    tiny_autoencoder(**TEMPORAL_2).save_pretrained(folder)
    return folder

def arguments(tmp_path, start, minutes, **sizes):
    given = [word for name, value in {**SIZES, **sizes}.items() for word in ("--set", f"{name}={value}")]
    return ["train", "--cpu", "--minutes", str(minutes), "--state", str(tmp_path/"state"), "--out", str(tmp_path/"out"),
            "--start", str(start), "--world", "sas_nb.lab.draw", "--least", "0", *given]

def rows(path): return [json.loads(line) for line in path.read_text().splitlines()]

class Ticks:
    "A clock that goes on by a second each time somebody looks, on a quick machine and on a slow one."
    sleep, now = time.sleep, 0
    def time(self): self.now += 1; return self.now
    process_time = time

def tried(base, monkeypatch, *args):
    monkeypatch.setattr(base, "time", Ticks())
    monkeypatch.setattr(base, "START", 0)
    return CliRunner().invoke(base.app, list(map(str, args)))

def run(base, monkeypatch, *args):
    result = tried(base, monkeypatch, *args)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def quick(base, monkeypatch):
    "Few figures: they take longer than the training."
    report = base.autoencoder_report
    monkeypatch.setattr(base, "autoencoder_report", lambda vae, world, n=3: report(vae, world, 3))
    monkeypatch.setattr(base.measure_dit, "__defaults__", (2,))
    monkeypatch.setattr(base.sample, "__defaults__", (2,))

def test_a_linear_start(base, quick, tmp_path, monkeypatch):
    from sas_nb.lab import draw
    from sas_nb.lab.autoencoder import decibels, pixels, reconstruct
    from sas_nb.lab.linear_code import linear_autoencoder, linear_code
    from sas_nb.lab.tiny import encode, to_signed
    monkeypatch.setattr(base, "time", Ticks())
    run(base, monkeypatch, "linear", tmp_path/"start", "--clips", "12", "--minutes", ".8", "--batch", "2")
    vae = base.begun(tmp_path/"start", {}, (None, None, None), "cpu").float().eval()
    x = torch.stack([pixels(draw.random_spec(i), draw) for i in range(12)])
    code, some = linear_code(x, 64), to_signed(x[:3])
    z = code.encode(some)
    assert latent_shape(vae) == (64, 9, 8, 8) and (encode(vae, some)-z).pow(2).mean() < .01*z.pow(2).mean()
    torch.manual_seed(0)
    untrained = linear_autoencoder(code).eval()
    assert (decibels(some, reconstruct(vae, some)) > decibels(some, reconstruct(untrained, some)) + 2).all()


def test_a_frozen_encoder_stays(base, quick, tmp_path, monkeypatch):
    torch.manual_seed(0)
    vae = tiny_autoencoder(**TEMPORAL_2)
    vae.save_pretrained(tmp_path/"start")
    run(base, monkeypatch, *arguments(tmp_path, tmp_path/"start", 1), "--frozen", "--share", "1")
    after = load_autoencoder(tmp_path/"state"/"vae").state_dict()
    same = {k: torch.equal(v.half(), after[k].half()) for k, v in vae.state_dict().items()}
    assert all(v for k, v in same.items() if k.startswith(("encoder", "quant"))) and not same["decoder.conv_in.weight"]


def test_a_dit_and_a_decoder_learn_apart_and_are_joined(base, quick, start, tmp_path, monkeypatch):
    run(base, monkeypatch, *arguments(tmp_path/"dit", start, 1), "--share", "0")
    run(base, monkeypatch, *arguments(tmp_path/"decoder", start, 1), "--share", "1", "--frozen")
    pipeline, learned = tmp_path/"dit"/"state"/"pipeline", tmp_path/"decoder"/"state"/"vae"
    run(base, monkeypatch, "join", pipeline, learned, tmp_path/"joined")
    old, new, joined = (load_autoencoder(f) for f in (pipeline, learned, tmp_path/"joined"))
    def same(one, other): return all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert same(old, load_autoencoder(start).half().float()) and same(new, joined) and not same(old, joined)
    assert joined.config.latents_std == old.config.latents_std and len(set(old.config.latents_std)) == 1
    assert "files" not in json.loads((tmp_path/"joined"/"vae"/"config.json").read_text())
    trained = json.loads((tmp_path/"joined"/"sas_nb.json").read_text())["trained"]
    assert trained[-1]["dit"] is None and trained[0]["dit"]["step"] == rows(pipeline/"dit.jsonl")[-1]["step"]
    assert len(VideoDiT.load(tmp_path/"joined").sample(["he is walking"], steps=1)) == 1
    other = tiny_autoencoder(**TEMPORAL_2)
    other.save_pretrained(tmp_path/"other")
    result = tried(base, monkeypatch, "join", pipeline, tmp_path/"other", tmp_path/"wrong")
    assert "encodes otherwise" in str(result.exception) and not (tmp_path/"wrong").exists()


def test_no_share_without_a_start_is_refused(base, tmp_path, monkeypatch):
    result = tried(base, monkeypatch, "train", "--cpu", "--share", "0", "--state", tmp_path/"state")
    assert result.exit_code == 2 and "--start" in result.output


def test_a_narrow_linear_start_is_refused():
    from sas_nb.lab.linear_code import linear_autoencoder, linear_code
    code = linear_code(torch.randint(256, (4, 3, 17, 64, 64), dtype=torch.uint8), 64)
    with pytest.raises(UserError, match="width of"): linear_autoencoder(code, 64)


def test_everything_by_the_clock_and_on_from_there(base, quick, start, tmp_path, monkeypatch):
    run(base, monkeypatch, *arguments(tmp_path, start, 1))
    out, state = tmp_path/"out", tmp_path/"state"
    log = rows(out/"log.jsonl")
    parts = [r["part"] for r in log]
    assert list(dict.fromkeys(parts)) == ["autoencoder", "latents", "dit", "report", "done"]
    assert not any("error" in r for r in log) and {"clips", "frames", "heads", "hands"} <= set().union(*log)
    files = sorted(p.name for p in out.iterdir())
    assert files == ["autoencoder.png", "log.jsonl", "samples.png", "weights.00", "weights.json"] and all(p.stat().st_size < 16*2**20 for p in out.iterdir())
    run(base, monkeypatch, "unpack", out, tmp_path/"again")
    dit = VideoDiT.load(tmp_path/"again"/"pipeline")
    assert latent_shape(dit.pipe.vae) == (16, 9, 8, 8) and dit.defaults.num_frames == 17
    was, now = json.loads((state/"clock.json").read_text()), rows(state/"dit.jsonl")[-1]["step"]
    assert now >= 1 and was["seed"] >= 16 and 1 <= sum(was["minutes"].values()) < 1.5
    run(base, monkeypatch, *arguments(tmp_path, start, 1.8))
    after = json.loads((state/"clock.json").read_text())
    assert rows(state/"dit.jsonl")[-1]["step"] > now and after["seed"] > was["seed"], "a later piece goes on, with other clips"

def test_weights_over_16_mib_come_in_shards_and_a_damaged_one_is_noticed(base, tmp_path):
    state, out = tmp_path/"state", tmp_path/"out"
    (state/"vae").mkdir(parents=True); out.mkdir()
    (state/"vae"/"big").write_bytes(np.random.default_rng(0).bytes(20_000_000))
    a_run = type("Run", (), dict(state=state, out=out, log=None))
    base.pack(a_run)
    assert sorted(p.name for p in out.iterdir()) == ["weights.00", "weights.01", "weights.json"]
    assert max(p.stat().st_size for p in out.iterdir()) < 16*2**20
    base.unpack(out, tmp_path/"again")
    assert (tmp_path/"again"/"vae"/"big").read_bytes() == (state/"vae"/"big").read_bytes()
    (out/"weights.01").write_bytes(b"cut off")
    with pytest.raises(UserError, match="weights.01"): base.unpack(out, tmp_path/"other")

def test_an_autoencoder_outlives_a_dit_that_fails(base, quick, start, tmp_path, monkeypatch):
    def fails(*_): raise RuntimeError("no memory left")
    monkeypatch.setattr(base, "dit_backward", fails)
    run(base, monkeypatch, *arguments(tmp_path, start, 1))
    log = rows(tmp_path/"out"/"log.jsonl")
    assert len([r for r in log if "no memory left" in r.get("error", "")]) == 2, "tried again with less, then given up"
    assert any("heads" in r for r in log) and log[-1]["minutes"] > 0
    run(base, monkeypatch, "unpack", tmp_path/"out", tmp_path/"again")
    vae = load_autoencoder(tmp_path/"again"/"vae")
    assert not torch.equal(vae.decoder.conv_out.weight, load_autoencoder(start).decoder.conv_out.weight)

def test_a_loss_that_is_no_number_does_not_reach_the_disk(base, quick, start, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "autoencoder_step", lambda *_: torch.tensor(float("nan")))
    run(base, monkeypatch, *arguments(tmp_path, start, 1), "--share", 1)
    assert not (tmp_path/"state"/"autoencoder.safetensors").exists()
    assert any("not a number" in r.get("error", "") for r in rows(tmp_path/"out"/"log.jsonl"))

def never_saved(base, monkeypatch):
    "The autoencoder's folder cannot be written."
    write = base.atomic
    def atomic(path, **kwargs):
        if path.name == "vae": raise UserError("That place is taken.")
        return write(path, **kwargs)
    monkeypatch.setattr(base, "atomic", atomic)

def test_what_cannot_be_saved_ends_the_run_at_once(base, quick, start, tmp_path, monkeypatch):
    never_saved(base, monkeypatch)
    result = tried(base, monkeypatch, *arguments(tmp_path, start, 1))
    assert result.exit_code == 1 and isinstance(result.exception, UserError)
    log = rows(tmp_path/"out"/"log.jsonl")
    assert [r["part"] for r in log if "error" in r] == ["train_autoencoder"] and {r["part"] for r in log} <= {"autoencoder", "train_autoencoder"}

def test_on_a_lease_a_save_that_fails_is_written_down_and_the_rest_is_done(base, quick, start, tmp_path, monkeypatch):
    never_saved(base, monkeypatch)
    monkeypatch.setattr(base, "_end_after", lambda minutes: None)
    run(base, monkeypatch, *arguments(tmp_path, start, 1), "--limit", 1.4)
    log = rows(tmp_path/"out"/"log.jsonl")
    assert any("place is taken" in r.get("error", "") for r in log) and any("held_out_loss" in r for r in log)
    assert (tmp_path/"state"/"pipeline"/"vae"/"config.json").exists()

def test_a_foreign_folder_is_noticed_before_any_work_and_one_of_an_older_version_is_ours(base, start, tmp_path, monkeypatch):
    folder = tmp_path/"state"/"vae"
    folder.mkdir(parents=True)
    (folder/"config.json").write_text('{"mine": 1}')
    drawing = []
    monkeypatch.setattr(base, "Drawing", lambda *a: drawing.append(a))
    result = tried(base, monkeypatch, *arguments(tmp_path, start, 1))
    assert isinstance(result.exception, UserError) and not drawing and (folder/"config.json").read_text() == '{"mine": 1}'
    (folder/"config.json").unlink()
    load_autoencoder(start).save_pretrained(folder)
    base.check_places(type("Run", (), dict(state=folder.parent, out=None)))
    with base.atomic(folder, **base.VAE) as tmp: load_autoencoder(start).half().save_pretrained(tmp)
    assert load_autoencoder(folder).config.scale_factor_temporal == 2

def test_no_dit_is_trained_on_a_blurred_autoencoder(base, quick, start, tmp_path, monkeypatch):
    run(base, monkeypatch, *arguments(tmp_path, start, 1), "--least", 99)
    log, state = rows(tmp_path/"out"/"log.jsonl"), tmp_path/"state"
    assert {r["part"] for r in log} == {"autoencoder", "report", "done"} and not (state/"dit.safetensors").exists()
    assert log[-1]["parts"]["autoencoder"] > .8, "the time of the DiT is the autoencoder's"
    blurred = type("Run", (), dict(state=state, start=start, shape={}, widths=(None, None, None), device="cpu", rate=.01, frozen=False, least=99, budget=base.Budget(state/"clock.json", 1, 1)))
    with pytest.raises(UserError, match="lower --least"): base.finished(blurred)
    blurred.least = 0
    shipped, averaged = load_autoencoder(state/"vae"), base.finished(blurred)
    assert torch.equal(shipped.decoder.conv_out.weight, averaged.decoder.conv_out.weight.half()), "what is shipped is the average"
    last = base.learners(blurred)[0]
    assert not torch.equal(last.decoder.conv_out.weight, averaged.decoder.conv_out.weight)

def test_the_limit_ends_a_piece_whatever_it_does(start, tmp_path):
    code = f"import sys, time; sys.path.insert(0, {str(SCRIPT.parent)!r}); import gpu_base; gpu_base._end_after(.001); time.sleep(60)"
    began = time.time()
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    assert done.returncode == 3 and time.time()-began < 50

def test_the_script_needs_no_video_reader(tmp_path):
    code = (f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); sys.modules['matplotlib'] = None\n"
            "import importlib.util; find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *a: None if name == 'av' else find(name, *a)\n"
            "import gpu_base; assert 'av' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))

def test_drawn_clips_are_what_the_world_draws_and_each_is_used_as_often_as_asked(base):
    from sas_nb.lab import draw as world
    drawing = base.Drawing(world, 2, 100, focus=True, slots=4)
    try:
        ring = base.Ring(drawing, 8, torch.device("cpu"), uses=3, first=6)
        ring.wait(6)
        assert ring.drawn == 6 and ring.feed() == 0, "no more than is used up"
        for k, seed in enumerate(ring.seeds[:6]):
            assert torch.equal(ring.store["clips"][k], base.pixels(world.random_spec(int(seed))))
            heads, hands = base.head_and_hands(world.random_spec(int(seed)))
            assert torch.equal(ring.store["focus"][k], heads.byte()+2*hands.byte())
        assert len(set(ring.seeds[:6])) == 6
        for _ in range(40):
            ring.sample(3, torch.Generator())
            while ring.drawn < 6+ring.used//3: ring.feed(); time.sleep(.001)
        assert ring.used == 120 and ring.drawn == 46 and len(ring) == 8
    finally: drawing.close()

def name_of(text): return re.sub("[-_.]+", "-", text).lower()

def with_all_they_need(names):
    "Distributions and what comes with them."
    todo, seen = list(map(name_of, names)), set()
    while todo:
        if (name := todo.pop()) in seen: continue
        seen.add(name)
        wanted = [Requirement(r) for r in requires(name) or []] if name in INSTALLED else []
        todo += [name_of(r.name) for r in wanted if r.marker is None or r.marker.evaluate(dict(extra=""))]
    return seen & set(INSTALLED)

INSTALLED = {name_of(d.metadata["Name"]): d for d in distributions()}

def test_the_script_needs_no_more_than_torch_transformers_accelerate_and_the_wheels(base, tmp_path):
    site = tmp_path/"site"
    site.mkdir()
    for name in with_all_they_need(["torch", "numpy", "pillow", "requests", "transformers", "accelerate"]) | set(map(name_of, base.WHEELS)):
        for top in {f.parts[0] for f in INSTALLED[name].files or [] if f.parts[0] not in ("..", "__pycache__")}:
            if not (site/top).exists(): (site/top).symlink_to(INSTALLED[name].locate_file(top))
    (tmp_path/"check.py").write_text(f"""
import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})
import gpu_base
from sas_nb.lab import draw as world
spec = world.random_spec(3)
gpu_base.pixels(spec, world), gpu_base.head_and_hands(spec, world), gpu_base.tiny_pipeline(gpu_base.tiny_autoencoder(), world)
for name in ("av", "scipy", "matplotlib", "peft"): assert name not in sys.modules, name
""")
    path = os.pathsep.join([str(site), str(SCRIPT.parent.parent)])
    done = subprocess.run([sys.executable, "-S", tmp_path/"check.py"], env=dict(os.environ, PYTHONPATH=path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]

def test_the_command_for_another_machine_uses_what_was_fetched(base, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(base.subprocess, "run", lambda words, **_: fetched.append(list(map(str, words))))
    monkeypatch.setattr(base, "_libraries", lambda: [SCRIPT])
    (tmp_path/"start").mkdir()
    result = CliRunner().invoke(base.app, ["wheels", "--folder", str(tmp_path/"carry"), "--start", str(tmp_path/"start"), "--minutes", "9",
                                           "--more", "--frozen --share .2"])
    assert result.exit_code == 0, result.output
    assert {w.split("==")[0] for w in fetched[0] if "==" in w} == set(base.WHEELS) and (tmp_path/"carry"/"lib"/SCRIPT.name).exists()
    assert "--limit 9.4" in result.output and "--frozen --share .2 --out" in result.output and f"--start {tmp_path/'carry'/'start'}" in result.output and (tmp_path/"carry"/"start").is_dir()
