"""A model whose parts are in memory one after another: the same results, nothing loaded twice, and little of the host's memory."""
import json, shutil, subprocess, sys, threading
import pytest, torch
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel
import road
import wan_folder as wan
from sas_nb import hub
from sas_nb.adapter import SharedLoRA
from sas_nb.clip import Clip
from sas_nb.counterfactual import add_counterfactuals, counterparts
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.hub import Checkpoint, fingerprint, maker_fingerprint
from sas_nb.learning import learn, learn_many
from sas_nb.lowbit import packed, unpacked
from sas_nb.memory import Memory
from sas_nb.recipe import Run
from sas_nb.streamed import StreamedEncoder

PROMPTS, SIZE = ("a [v] man in a red shirt in the park", "he is [u] dancing"), dict(num_frames=5, height=32, width=32)
LARGE = {"text_encoder", "vae", "transformer"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "As it is published: the text encoder in several files."
    folder = wan.write(tmp_path_factory.mktemp("apart")/"wan")
    UMT5EncoderModel.from_pretrained(folder/"text_encoder").save_pretrained(folder/"text_encoder", max_shard_size="20KB")
    (folder/"text_encoder"/"model.safetensors").unlink()
    return folder

@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path): monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/"cache"))

@pytest.fixture
def clip(): return Clip(torch.rand(5, 3, 32, 32), 16, "clip")

def load(folder, dtype=torch.float32, **memory): return VideoDiT.load(folder, "cpu", dtype, Memory(**memory))

@pytest.fixture
def reads(monkeypatch):
    "Names of large parts in the order in which they are read, passes of the text encoder, and what else was in memory then."
    seen, part, forward = [], Checkpoint.part, StreamedEncoder.forward
    monkeypatch.setattr(Checkpoint, "part", lambda self, name, *how: (seen.append(name) if name in LARGE else None) or part(self, name, *how))
    monkeypatch.setattr(StreamedEncoder, "forward", lambda self, ids, mask: seen.append(f"{len(ids)} prompts") or forward(self, ids, mask))
    return seen


# The text encoder, layer by layer

def ids_and_mask():
    ids, mask = torch.zeros(2, 3, 12, dtype=torch.long)
    for i, n in enumerate((12, 3, 1)):
        ids[i, :n] = torch.arange(2, n+2)
        mask[i, :n] = 1
    return ids, mask

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_streamed_text_is_the_stock_encoders(folder, dtype):
    place, (ids, mask) = folder/"text_encoder", ids_and_mask()
    stock = UMT5EncoderModel.from_pretrained(place, dtype=dtype).eval()
    streamed = StreamedEncoder(UMT5EncoderModel, place, "cpu", dtype)
    text = streamed(ids, mask).last_hidden_state
    assert text.dtype == dtype and not any(streamed.parameters())
    with torch.no_grad(): padded = stock(ids, mask).last_hidden_state*mask[..., None]
    for row, own, n in zip(text, ids, (12, 3, 1)):
        with torch.no_grad(): assert torch.equal(row[:n], stock(own[None, :n]).last_hidden_state[0]), "to the bit, without padding"
        assert not row[n:].any()
    assert (text-padded).abs().max() < {torch.float32: 1e-5, torch.bfloat16: .05, torch.float16: .01}[dtype]
    there = stock.encoder.block[1].state_dict()
    for k, w in streamed.layer(1).items(): assert w.dtype == there[k].dtype and torch.equal(w, there[k]), k

def test_a_prompt_is_read_alike_with_any_others(folder):
    one, many = load(folder, apart=True), load(folder, apart=True)
    alone, beside = one.embed("a man"), many.embed(["a man in the red shirt at night", "a man", ""])[1:2]
    assert torch.equal(alone, beside[:, :alone.shape[1]]) and not beside[:, alone.shape[1]:].any()

def test_embed_is_the_whole_encoders(folder):
    plain, apart = load(folder), load(folder, apart=True)
    words = ["a man in the red shirt", "", "dancing"]
    torch.testing.assert_close(apart.embed(words), plain.embed(words), atol=1e-5, rtol=1e-4)
    assert isinstance(apart.text_encoder, StreamedEncoder) and type(plain.text_encoder) is UMT5EncoderModel
    torch.testing.assert_close(apart.prompt_embeds("a man"), plain.prompt_embeds("a man"), atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize("bits, most", [(8, .007), (4, .12)])
@pytest.mark.parametrize("shape", [(64, 256), (48, 96)])
def test_rounded_weights(bits, most, shape):
    "Half the widest step of each group, and no more; relative error as documented."
    w = torch.randn(shape)*torch.linspace(.01, 3, shape[0])[:, None]
    w[0] = 0
    rounded = packed(w, f"int{bits}", 64)
    codes, scale, back = rounded["codes"], rounded["scale"], unpacked(rounded, w.dtype)
    assert back.shape == w.shape and not back[0].any() and (back-w).norm() < most*w.norm()
    assert ((back-w).unflatten(1, (-1, codes.shape[-1]*8//bits)).abs() <= scale*.5001).all()
    assert codes.nbytes == w.numel()*bits//8

def test_text_in_fewer_bits(folder):
    "It stays in memory unless parts are apart, is another text in the cache, and a little off."
    exact, texts = load(folder).embed_once("a man"), {}
    for bits in (8, 4):
        for apart in (False, True):
            dit = load(folder, text_bits=bits, apart=apart)
            texts[bits, apart] = dit.embed_once("a man")
            assert len(dit.text_encoder.kept) == (0 if apart else 2)
        assert torch.equal(texts[bits, False], texts[bits, True])
        held = dit.text_encoder.layer(0)
    errors = [float((texts[b, True]-exact).norm()/exact.norm()) for b in (8, 4)]
    assert 0 < errors[0] < .02 < errors[1] < .4 and held["layer.0.SelfAttention.relative_attention_bias.weight"].dtype == torch.float32
    with pytest.raises(UserError, match="text_bits=5"): load(folder, text_bits=5)

@pytest.mark.parametrize("apart", [False, True])
def test_what_was_read_in_other_bits_is_read_anew(folder, apart):
    exact, rounded = load(folder).embed("a man"), load(folder, text_bits=4).embed("a man")
    assert not torch.equal(exact, rounded)
    dit = load(folder, apart=apart)
    torch.testing.assert_close(dit.embed("a man"), exact, atol=1e-5, rtol=1e-4)
    dit.memory = Memory(text_bits=4, apart=apart)
    assert torch.equal(dit.embed_once("a man"), rounded) and torch.equal(dit.embed("a man"), rounded)
    assert torch.equal(load(folder, text_bits=4).embed_once("a man"), rounded), "nor is another text kept on disk"
    dit.memory = Memory(apart=apart)
    torch.testing.assert_close(dit.embed("a man"), exact, atol=1e-5, rtol=1e-4)


# The host's memory

def write_wide(place, layers, words, size):
    "Shards of full-width layers, without the encoder in memory: a million random numbers again and again."
    place.mkdir(parents=True)
    with torch.device("meta"): model = UMT5EncoderModel(UMT5Config(**wan.TEXT | dict(num_layers=layers, vocab_size=words)))
    model.config.save_pretrained(place)
    places, shard, n, noise = {}, {}, 1, torch.randn(2**20)
    def flush():
        nonlocal shard, n
        file = f"model-{n:05d}.safetensors"
        save_file(shard, place/file, {"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard, n = {}, n+1
    for name, p in model.state_dict().items():
        if name == "encoder.embed_tokens.weight": continue
        shard[name] = (noise*p.shape[-1]**-.5).repeat(-(-p.numel()//2**20))[:p.numel()].view(p.shape) if p.ndim > 1 else torch.ones(p.shape)
        if sum(t.nbytes for t in shard.values()) > size: flush()
    if shard: flush()
    (place/"model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map=places)))

WATCH = """
import json, sys, time, torch
from threading import Event, Thread
from pathlib import Path
from transformers import UMT5EncoderModel
from sas_nb.streamed import StreamedEncoder
def anonymous():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"): return int(line.split()[1])/2**20
place, dtype, prompts = Path(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3])
peak, over = [anonymous()], Event()
def watch():
    while not over.wait(.005): peak.append(anonymous())
before, start, thread = peak[0], time.perf_counter(), Thread(target=watch)
thread.start()
encoder = StreamedEncoder(UMT5EncoderModel, place, "cpu", dtype)
ids = torch.randint(2, encoder.stored[encoder.table].shape[0], (prompts, 24), generator=torch.Generator().manual_seed(0))
mask = torch.ones_like(ids)
text = encoder(ids, mask).last_hidden_state
over.set(); thread.join()
torch.save(text, sys.argv[4])
print(json.dumps(dict(before=before, peak=max(peak), seconds=time.perf_counter()-start, layers=encoder.depth)))
"""

def watched(place, dtype, prompts, out):
    "Peak of anonymous memory of a process that reads some prompts, in GiB, and the text."
    run = subprocess.run([sys.executable, "-c", WATCH, str(place), dtype, str(prompts), str(out)], capture_output=True, text=True)
    assert not run.returncode, run.stderr
    return json.loads(run.stdout), torch.load(out)

@pytest.mark.slow # a quarter of a minute
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's own count of a process's memory")
def test_full_width_layers_need_little_of_the_host(tmp_path):
    "The table of words is cut to 4,096; with all 256,384 nothing more is read."
    write_wide(tmp_path/"text_encoder", layers=1, words=4096, size=300_000_000)
    assert len(list((tmp_path/"text_encoder").glob("*.safetensors"))) > 2
    about, text = watched(tmp_path/"text_encoder", "bfloat16", 3, tmp_path/"text.pt")
    assert about["peak"] < 3 and about["peak"]-about["before"] < 1.2, about
    stock = UMT5EncoderModel.from_pretrained(tmp_path/"text_encoder", dtype=torch.bfloat16).eval()
    ids = torch.randint(2, 4096, (3, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): whole = torch.cat([stock(i[None]).last_hidden_state for i in ids])
    assert torch.equal(text, whole) and torch.isfinite(text).all()


# Clips through the autoencoder

def test_passes_are_cut_by_pixels(folder, monkeypatch):
    dit, sizes = load(folder), []
    encode = type(dit.vae).encode
    monkeypatch.setattr(type(dit.vae), "encode", lambda self, x: sizes.append(len(x)) or encode(self, x))
    small = torch.rand(10, 1, 3, 32, 32)
    z = dit.encode(small)
    assert sizes == [8, 2]
    sizes.clear()
    monkeypatch.setattr("sas_nb.passes._PIXELS", 3*32*32)
    torch.testing.assert_close(dit.encode(small), z, atol=1e-5, rtol=1e-4)
    assert sizes == [3, 3, 3, 1]
    sizes.clear()
    dit.encode(torch.rand(2, 9, 3, 32, 32))
    assert sizes == [1, 1], "four frames of a clip are taken at a time, and never none"
    for memory in (dict(tiled=True), dict(apart=True)):
        sizes.clear()
        torch.testing.assert_close(load(folder, **memory).encode(small[:2]), z[:2], atol=1e-5, rtol=1e-4)
        assert sizes == [1, 1]

@pytest.mark.parametrize("changes", [{}, dict(is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16, decoder_base_dim=8)], ids=["2.1", "2.2"])
def test_tiles_show_nearly_the_same(folder, tmp_path, changes):
    from diffusers import AutoencoderKLWan
    torch.manual_seed(0)
    shutil.copytree(folder, tmp_path/"wan")
    AutoencoderKLWan(**wan.VAE | dict(base_dim=8) | changes).save_pretrained(tmp_path/"wan"/"vae")
    frames = torch.nn.functional.interpolate(torch.rand(1, 3, 10, 12), size=(320, 384), mode="bicubic").clamp(0, 1)[:, None]
    plain, tiled = load(tmp_path/"wan"), load(tmp_path/"wan", tiled=True)
    z = plain.encode(frames)
    assert tiled.vae.use_tiling and tiled.encode(frames).shape == z.shape
    far = [(a-b).abs().mean()/b.std() for a, b in ((tiled.encode(frames), z), (tiled.decode(z), plain.decode(z)))]
    assert all(f < .1 for f in far) and far[1] > 0, far

def test_the_autoencoder_in_16_bits(folder):
    frames = torch.rand(1, 5, 3, 32, 32)
    for dtype, half in zip(DTYPES, (torch.bfloat16, torch.bfloat16, torch.float16)):
        dit = load(folder, dtype, vae_bits=16)
        assert dit.vae.dtype == half and dit.encode(frames).dtype == torch.float32
    z = load(folder).encode_once(frames)
    assert 0 < (load(folder, vae_bits=16).encode_once(frames)-z).abs().max() < .2, "and it is another entry of the cache"


# Nothing twice, and one after another

def recipe(**changes): return road.recipe(both=dict(steps=2, batch=4, prior=.5), stage2=dict(counterfactuals=.25), rank=2, prior_prompts=("a man. he is walking", "a red park. dancing"), **changes)

def quick(monkeypatch):
    "Priors and counterfactual pairs in few steps."
    from sas_nb import data, stages
    monkeypatch.setattr(stages, "prior_examples", lambda *a, **k: data.prior_examples(*a, **k | dict(n=2, steps=1)))
    monkeypatch.setattr(stages, "add_counterfactuals", lambda *a, **k: add_counterfactuals(*a, **k | dict(n=1, steps=1)))

def test_a_whole_run_reads_each_part_once(folder, clip, tmp_path, monkeypatch, reads):
    quick(monkeypatch)
    dit, held, part = load(folder, apart=True), [], Checkpoint.part
    def watch(self, name, *how):
        if name in LARGE: held.append((name, dit.loaded & LARGE, dit.adapted))
        return part(self, name, *how)
    monkeypatch.setattr(Checkpoint, "part", watch)
    concept = learn(clip, PROMPTS, dit, recipe(), Run(out=tmp_path/"run", progress=False, sample_every=1, sample_prompt="a woman [v]. she is [u] walking"))
    words = len({"a man in a red shirt in the park", *counterparts(said := "a man in a red shirt in the park. he is dancing"), said, "a man. he is walking", "a red park. dancing", "a woman. she is walking", ""})
    assert reads == ["text_encoder", f"{words} prompts", "vae", "transformer", "vae"], "the second time for samples"
    assert [h for _, h, on in held if not on] == [set()]*3 and held[-1] == ("vae", {"transformer"}, True)
    assert len(list((tmp_path/"run"/"samples").iterdir())) == 4
    reads.clear()
    shown = concept.generate(steps=1, **SIZE)
    assert reads == [] or reads == ["vae"], "the concept's own prompt was read, the transformer is there"
    assert len(shown) == 5 and dit.loaded & LARGE <= {"vae", "transformer"}

def test_without_samples_the_autoencoder_is_read_once(folder, clip, monkeypatch, reads):
    quick(monkeypatch)
    learn(clip, PROMPTS, load(folder, apart=True), recipe(), Run(progress=False))
    assert [r for r in reads if r in LARGE] == ["text_encoder", "vae", "transformer"]

def test_many_clips_too(folder, clip, monkeypatch, reads):
    quick(monkeypatch)
    other = Clip(torch.rand(5, 3, 32, 32), 16, "other")
    learn_many([clip, other], [PROMPTS, PROMPTS], load(folder, apart=True), recipe(), Run(progress=False))
    assert [r for r in reads if r in LARGE] == ["text_encoder", "vae", "transformer"] and sum("prompts" in r for r in reads) == 1

def test_plain_memory_reads_each_part_once_and_keeps_it(folder, clip, monkeypatch, reads):
    quick(monkeypatch)
    dit = load(folder)
    learn(clip, PROMPTS, dit, recipe(), Run(progress=False))
    assert sorted(reads) == sorted(LARGE) and dit.loaded >= LARGE

def test_the_same_comes_out(folder, clip, monkeypatch, tmp_path):
    quick(monkeypatch)
    both = []
    for apart in (False, True):
        monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/f"cache {apart}"))
        dit = load(folder, apart=apart)
        concept = learn(clip, PROMPTS, dit, recipe(), Run(progress=False))
        both.append((concept, concept.generate(["a man", "a man [v]"], seed=1, steps=2, **SIZE)))
    (a, x), (b, y) = both
    for k in a.weights: torch.testing.assert_close(a.weights[k], b.weights[k], atol=2e-3, rtol=0)
    for s, t in zip(x, y): torch.testing.assert_close(s.frames, t.frames, atol=.02, rtol=0)
    assert a.info["fingerprint"] == b.info["fingerprint"]

def test_a_second_run_reads_only_what_trains(folder, clip, monkeypatch, reads):
    quick(monkeypatch)
    learn(clip, PROMPTS, load(folder, apart=True), recipe(), Run(progress=False))
    reads.clear()
    learn(clip, PROMPTS, load(folder, apart=True), recipe(), Run(progress=False))
    assert reads == ["transformer"]

def test_sampling_reads_text_then_transformer_then_autoencoder(folder, reads):
    dit = load(folder, apart=True)
    one = dit.sample("a man", steps=1, guidance=2., **SIZE)
    assert reads == ["text_encoder", "2 prompts", "transformer", "vae"] and dit.loaded & LARGE == {"vae"}
    torch.testing.assert_close(one.frames, load(folder).sample("a man", steps=1, guidance=2., **SIZE).frames, atol=1e-3, rtol=0)
    latents = dit.sample(["a man", "a red man"], seed=3, steps=1, latents=True, **SIZE)
    clips = dit.clips(latents, ["a man", "a red man"], 3, 7)
    assert [c.fps for c in clips] == [7, 7] and [c.name for c in clips] == ["a man", "a red man"]
    torch.testing.assert_close(clips[1].frames, dit.sample("a red man", seed=3, steps=1, **SIZE).frames, atol=1e-3, rtol=0)

def test_an_adapter_is_made_without_weights_and_its_transformer_stays(folder, reads):
    dit = load(folder, apart=True)
    adapter = SharedLoRA(dit, 2)
    assert not reads and len(adapter.weights) == 3*10*2
    with adapter.attached():
        dit.encode(torch.rand(1, 1, 3, 32, 32))
        assert dit.loaded & LARGE == {"transformer", "vae"} and dit.adapted
    dit.embed("a man")
    assert dit.loaded & LARGE == {"text_encoder"} and not dit.adapted
    for changes in (dict(layers="blocks.9.x"), dict(rank=0)):
        with pytest.raises(UserError): SharedLoRA(dit, **changes)
    assert reads == ["transformer", "vae", "text_encoder", "1 prompts"]

def test_another_memory_reads_anew_what_it_changes(folder, reads):
    dit = load(folder)
    assert dit.memory_given and not VideoDiT.load(folder, "cpu").memory_given
    dit.vae, dit.text_encoder, dit.transformer
    dit.memory = Memory(vae_bits=16)
    assert dit.loaded & LARGE == {"text_encoder", "transformer"} and dit.vae.dtype == torch.bfloat16
    dit.memory = Memory(apart=True, vae_bits=16)
    assert dit.loaded & LARGE == {"vae", "transformer"}
    own = VideoDiT(load(folder).pipe)
    own.memory = Memory(apart=True, vae_bits=16)
    assert own.loaded >= LARGE and own.sample("a man", steps=1, **SIZE) and own.loaded >= LARGE, "what was handed over stays as it is"

def test_the_stock_pipeline_is_whole(folder):
    dit = load(folder, apart=True)
    dit.embed("a man")
    pipe = dit.pipe
    assert type(pipe.text_encoder) is UMT5EncoderModel and dit.loaded >= LARGE
    assert pipe("a man", num_inference_steps=1, height=32, width=32, num_frames=5, output_type="latent").frames.shape == (1, 16, 2, 4, 4)

def test_threads_get_one_part_each_time(folder):
    "Two that need different parts work on, whoever frees what."
    dit, got = load(folder, apart=True), []
    frames, x, t, text = torch.rand(1, 1, 3, 32, 32), dit.noise([0], 5, 32, 32), torch.tensor([.5]), torch.zeros(1, 2, 32)
    def both(f):
        for _ in range(2): got.append(f())
    threads = [threading.Thread(target=both, args=(f,)) for f in (lambda: dit.encode(frames), lambda: dit.velocity(x, t, text))]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(got) == 4 and all(torch.isfinite(g).all() for g in got)


# What weights are called

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory", [{}, dict(apart=True), dict(vae_bits=16)], ids=str)
def test_names_are_known_without_loading(folder, dtype, memory):
    dit, loaded = load(folder, dtype, **memory), load(folder, dtype, **memory | dict(apart=False))
    for part in sorted(LARGE):
        assert dit.print_of(part) == fingerprint(getattr(loaded, part)) == loaded.print_of(part), part
        assert dit.weights_names(part)[0] == loaded.weights_names(part)[0] and set(loaded.weights_names(part)) == set(dit.weights_names(part))
    assert dit.prints == dit.weights_names() and maker_fingerprint(dit) == maker_fingerprint(loaded) and not dit.loaded

def test_weights_changed_in_memory_are_told(folder):
    dit = load(folder)
    before = dit.print_of("transformer"), dit.print_of("vae")
    with torch.no_grad():
        for part in (dit.transformer, dit.vae): next(part.parameters()).mul_(2)
    assert dit.print_of("transformer") != before[0] and dit.print_of("vae") != before[1]

def test_weights_that_are_no_safetensors(folder, tmp_path):
    "Their names need the part, and they cannot be streamed."
    shutil.copytree(folder, tmp_path/"x")
    place = tmp_path/"x"/"text_encoder"
    tensors = {k: v for f in place.glob("*.safetensors") for k, v in load_file(f).items()}
    for f in place.glob("model*"): f.unlink()
    torch.save(tensors, place/"pytorch_model.bin")
    dit = load(tmp_path/"x")
    assert dit.print_of("text_encoder") == load(folder).print_of("text_encoder") and "text_encoder" in dit.loaded
    with pytest.raises(UserError, match="no safetensors files in text_encoder/, and it is to be read from them layer by layer"): load(tmp_path/"x", apart=True).embed("a man")


# Damage

def spoil_index(place): (place/"model.safetensors.index.json").write_text('{"weight_map": {"shared.wei')
def empty_index(place): (place/"model.safetensors.index.json").write_text("[1]")
def lose_shard(place): sorted(place.glob("*.safetensors"))[1].unlink()
def cut_shard(place): (f := sorted(place.glob("*.safetensors"))[1]).write_bytes(f.read_bytes()[:-1000])
def header_only(place): sorted(place.glob("*.safetensors"))[1].write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
def another_size(place):
    config = json.loads((place/"config.json").read_text())
    (place/"config.json").write_text(json.dumps(config | dict(d_ff=96)))
def more_layers(place):
    config = json.loads((place/"config.json").read_text())
    (place/"config.json").write_text(json.dumps(config | dict(num_layers=3)))

@pytest.mark.parametrize("spoil, says, when", [
    (spoil_index, "text_encoder/model.safetensors.index.json is not whole", "load"), (empty_index, "index.json is not whole", "load"), (lose_shard, r"text_encoder/model-00002-of-\d+.safetensors is missing", "load"),
    (cut_shard, r"text_encoder/model-00002-of-\d+.safetensors is damaged", "read"), (header_only, "model-00002-of-.* does not hold", "read"), (another_size, r"is \(64, 32\) in text_encoder/, and not \(96, 32\)", "read"),
    (more_layers, "files in text_encoder/ do not hold encoder.block.2", "read")], ids=lambda x: getattr(x, "__name__", ""))
def test_a_download_that_is_not_whole(folder, tmp_path, spoil, says, when):
    shutil.copytree(folder, tmp_path/"x")
    spoil(tmp_path/"x"/"text_encoder")
    with pytest.raises(UserError, match=says) as e:
        dit = load(tmp_path/"x", apart=True)
        assert when == "read"
        dit.embed("a man")
    assert "\n" not in str(e.value) and "every file of it is complete" in str(e.value)

def test_a_shard_of_the_transformer_is_missed_at_once(folder, tmp_path):
    shutil.copytree(folder, tmp_path/"x")
    dit = load(folder)
    dit.transformer.save_pretrained(tmp_path/"x"/"transformer", max_shard_size="20KB")
    (tmp_path/"x"/"transformer"/"diffusion_pytorch_model.safetensors").unlink()
    assert load(tmp_path/"x").print_of("transformer") == dit.print_of("transformer")
    lost = sorted((tmp_path/"x"/"transformer").glob("*.safetensors"))[-1]
    lost.unlink()
    with pytest.raises(UserError, match=f"transformer/{lost.name} is missing"): load(tmp_path/"x")

@pytest.fixture
def from_hub(folder, tmp_path, monkeypatch):
    "A hub id, as far as the hub's client has downloaded it."
    monkeypatch.setattr(hub, "_offline", lambda name, revision=None: False)
    configuration = hub._configuration
    monkeypatch.setattr(hub, "_configuration", lambda source, *_, **k: configuration(str(folder)))
    asked = []
    def download(source, allow_patterns, revision, **k):
        asked.append([*allow_patterns, revision])
        return str(folder)
    monkeypatch.setattr(hub, "snapshot_download", download)
    return asked

def test_of_a_hub_id_only_the_part_is_downloaded(from_hub, folder):
    dit = VideoDiT.load("someone/wan", "cpu", torch.float32, Memory(apart=True))
    assert dit.print_of("text_encoder") == load(folder).print_of("text_encoder")
    assert isinstance(dit.text_encoder, StreamedEncoder) and from_hub == [["text_encoder/*", None]]*2

def test_of_a_revision_the_weights_are_read_too(from_hub):
    dit = VideoDiT.load("someone/wan", "cpu", torch.float32, Memory(apart=True), revision="v1")
    for part in ("text_encoder", "transformer"): getattr(dit, part)
    assert dit.print_of("vae") and {part for part, _ in from_hub} == {"text_encoder/*", "transformer/*", "vae/*"}
    assert {revision for _, revision in from_hub} == {"v1"}

def test_a_full_disk_is_said(from_hub, monkeypatch):
    def full(*a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr(hub, "snapshot_download", full)
    dit = VideoDiT.load("someone/wan", "cpu", torch.float32, Memory(apart=True))
    for use in (lambda: dit.print_of("vae"), lambda: dit.text_encoder):
        with pytest.raises(UserError, match="no room on the disk to download 'someone/wan': free some space") as e: use()
        assert "\n" not in str(e.value)
