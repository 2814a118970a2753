"""The road on a folder with Wan 2.1 1.3B's configuration and keys, at reduced width and depth, with random weights: what runs here runs there."""
import json, re, shutil
from dataclasses import replace
import pytest, torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
import road
import wan_folder as wan
from sas_nb import checkpoint, stored
from sas_nb.adapter import SharedLoRA
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.counterfactual import redraw
from sas_nb.data import Examples
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.hub import fingerprint, defaults_of
from sas_nb.learning import learn

APPEARANCE, MOTION = "a [v] man in a red shirt in the park", "he is [u] dancing"
SIZE = dict(num_frames=5, height=32, width=32)
# The published names, written out by hand: a change of the library's own naming must not go unseen.
NAMES = dict(
    transformer=r"blocks\.\d+\.(attn[12]\.(norm_[qk]\.weight|to_([qkv]|out\.0)\.(weight|bias))|ffn\.net\.(0\.proj|2)\.(weight|bias)|norm2\.(weight|bias)|scale_shift_table)|"
                r"condition_embedder\.((time_embedder|text_embedder)\.linear_[12]|time_proj)\.(weight|bias)|(patch_embedding|proj_out)\.(weight|bias)|scale_shift_table",
    text_encoder=r"shared\.weight|encoder\.final_layer_norm\.weight|encoder\.block\.\d+\.layer\.(0\.(SelfAttention\.([qkvo]|relative_attention_bias)|layer_norm)|1\.(DenseReluDense\.(wi_[01]|wo)|layer_norm))\.weight",
    vae=r"(quant_conv|post_quant_conv)\.(weight|bias)|(encoder|decoder)\.(conv_in\.(weight|bias)|conv_out\.(weight|bias)|norm_out\.gamma|mid_block\..+|down_blocks\..+|up_blocks\..+)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return wan.write(tmp_path_factory.mktemp("models")/"wan")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/"cache"))


@pytest.fixture
def clip(): return Clip(torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)), 16., "noise")


def load(folder, dtype=torch.float32):
    "The checkpoint, with fewer sampling steps for its prior than the 50 that Wan recommends."
    dit = VideoDiT.load(folder, device="cpu", dtype=dtype)
    dit.defaults = replace(dit.defaults, steps=2)
    return dit


def teach(dit, clip, **run):
    recipe = road.recipe(both=dict(steps=2, batch=4, lr=1e-2), rank=2)
    return learn(clip, (APPEARANCE, MOTION), dit, recipe, road.run(**run))


# The folder is what it says it is

def test_keys_are_the_published_ones(folder):
    stored, real = wan.stored_keys(folder), wan.real_keys()
    real["text_encoder"].pop("encoder.embed_tokens.weight") # tied to shared.weight, and not stored
    assert {k: len(v) for k, v in real.items()} == dict(transformer=825, text_encoder=242, vae=194)
    assert sum(torch.Size(s).numel() for s in real["transformer"].values()) == 1_418_996_800
    for part, keys in real.items():
        assert not [k for k in (*keys, *stored[part]) if not re.fullmatch(NAMES[part], k)]
        layer = lambda k: int(m[1]) if (m := re.search(r"^(?:encoder\.)?blocks?\.(\d+)\.", k)) else 0
        assert set(stored[part]) == {k for k in keys if layer(k) < 2}, "the first layers, and all that is no layer"
        assert all(len(stored[part][k]) == len(keys[k]) for k in stored[part])


def test_configuration_differs_only_in_width_and_depth(folder):
    for part, file, real, narrow in (("transformer", "config", wan.TRANSFORMER, wan.NARROW["transformer"]), ("text_encoder", "config", wan.TEXT, wan.NARROW["text"] | dict(vocab_size=...)),
                                     ("vae", "config", wan.VAE, wan.NARROW["vae"]), ("scheduler", "scheduler_config", wan.SCHEDULER, {})):
        said = json.loads((folder/part/f"{file}.json").read_text())
        assert {k: said[k] for k in real if k not in narrow} == {k: v for k, v in real.items() if k not in narrow}
    index = json.loads((folder/"model_index.json").read_text())
    assert [index[k][1] for k in ("transformer", "text_encoder", "vae", "scheduler")] == ["WanTransformer3DModel", "UMT5EncoderModel", "AutoencoderKLWan", "UniPCMultistepScheduler"]


def test_every_linear_of_the_real_model_gets_its_adapter(folder):
    dit, real = load(folder), wan.real_keys()["transformer"]
    layers = {m[1] for k in real if (m := re.fullmatch(rf"({dit.family.lora_layers})\.weight", k))}
    assert len(layers) == 30*10


# Reading it

def test_recommended_values_are_wans_own(folder):
    r = VideoDiT.load(folder, device="cpu").defaults
    assert (r.height, r.width, r.num_frames, r.fps, r.steps, r.guidance, r.lr) == (480, 832, 81, 16., 50, 5., 1e-4)
    assert defaults_of(folder) == r


# Wan 2.2, and what else calls itself a WanPipeline

def edited(folder, out, index={}, transformer={}, vae={}):
    "The folder with other words in its configuration."
    shutil.copytree(folder, out)
    for file, change in (("model_index", index), ("transformer/config", transformer), ("vae/config", vae)):
        path = out/f"{file}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return out

TWO = dict(transformer_2=["diffusers", "WanTransformer3DModel"])
OTHERS = [(dict(index=TWO), "two transformers and no boundary_ratio"), (dict(index=TWO | dict(boundary_ratio=1.5)), "two transformers and no boundary_ratio"), (dict(index=dict(boundary_ratio=.9)), "no second transformer"),
          (dict(index=TWO | dict(boundary_ratio=.875, transformer=[None, None])), "no transformer"), (dict(index=dict(transformer=[None, None])), "no transformer"),
          (dict(transformer=dict(image_dim=1280, added_kv_proj_dim=5120)), "shown a picture"), (dict(transformer=dict(in_channels=36)), "shown a picture"),
          (dict(transformer=dict(pos_embed_seq_len=514)), "shown a picture"), (dict(transformer=dict(_class_name="WanVACETransformer3DModel")), "WanVACETransformer3DModel"),
          (dict(vae=dict(z_dim=48)), "autoencoder does not fit")]

@pytest.mark.parametrize("change, says", OTHERS, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_what_would_be_used_as_what_it_is_not_is_refused_before_its_weights_are_read(folder, tmp_path, monkeypatch, change, says):
    monkeypatch.setattr(WanPipeline, "from_pretrained", lambda *a, **k: pytest.fail("read the weights"))
    with pytest.raises(UserError, match=f"cannot be used, since .*{says}.*choose one") as e: VideoDiT.load(edited(folder, tmp_path/"other", **change), device="cpu")
    assert str(e.value).count("\n") == 0

def test_a_hubs_checkpoint_is_refused_by_its_configuration_too(folder, monkeypatch):
    said = []
    def from_hub(kind, source, subfolder="", **kwargs):
        said.append((source, subfolder))
        path = folder/subfolder/("config.json" if subfolder else "model_index.json")
        return json.loads(path.read_text()) | ({} if subfolder else TWO)
    for kind in (DiffusionPipeline, WanTransformer3DModel, AutoencoderKLWan): monkeypatch.setattr(kind, "load_config", classmethod(from_hub))
    monkeypatch.setattr(WanPipeline, "from_pretrained", lambda *a, **k: pytest.fail("read the weights"))
    monkeypatch.setattr("sas_nb.hub._offline", lambda name, revision=None: False)
    with pytest.raises(UserError, match="'Wan-AI/Wan2.2-T2V-A14B-Diffusers' cannot be used, since it has two transformers and no"): VideoDiT.load("Wan-AI/Wan2.2-T2V-A14B-Diffusers")
    assert {s for s, _ in said} == {"Wan-AI/Wan2.2-T2V-A14B-Diffusers"}

def test_without_a_network_the_hub_is_asked_once(monkeypatch):
    asked, read = [], []
    def no_network():
        asked.append(1)
        raise OSError("no network")
    def configuration(source, local_files_only, revision=None):
        read.append(local_files_only)
        raise OSError("not here")
    monkeypatch.setattr("huggingface_hub.get_session", no_network)
    monkeypatch.setattr("sas_nb.hub._configuration", configuration)
    with pytest.raises(UserError, match="without a network"): defaults_of("nobody/nothing")
    assert len(asked) == 1 and not read, "the hub's client would try for a minute"
    assert defaults_of("nobody/nothing", download=False).fps == 16

@pytest.mark.parametrize("name, numbers", [("Wan2.2-TI2V-5B", (121, 704, 1280, 24.)), ("Wan2.1-T2V-14B", (81, 480, 832, 16.))])
def test_what_suits_a_known_model_is_known_without_a_network(monkeypatch, name, numbers):
    monkeypatch.setattr("sas_nb.hub._offline", lambda *args: pytest.fail("asked the hub"))
    for download in (True, False):
        r = defaults_of(f"Wan-AI/{name}-Diffusers", download)
        assert (r.num_frames, r.height, r.width, r.fps) == numbers

def test_the_hub_is_asked_as_whoever_is_logged_in(monkeypatch):
    "Or a gated model would be refused to those who may read it."
    from sas_nb.hub import _offline
    class Session:
        def head(self, url, headers, **how):
            told = {k.lower(): v for k, v in headers.items()}.get("authorization")
            return type("Answer", (), dict(headers={} if told == "Bearer hf_ours" else {"X-Error-Code": "GatedRepo"}))
    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setenv("HF_TOKEN", "hf_ours")
    assert _offline("someone/gated") is False
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(UserError, match="accepted its terms"): _offline("someone/gated")


def parts(folder): return {k: getattr(load(folder).pipe, k) for k in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")}

@pytest.mark.parametrize("make, says", [(lambda p: WanPipeline(**p, transformer_2=p["transformer"]), "two transformers"), (lambda p: WanPipeline(**p, boundary_ratio=.9), "no second"),
                                        (lambda p: WanPipeline(**p | dict(transformer=None), transformer_2=p["transformer"], boundary_ratio=.9), "no transformer"), (lambda p: WanPipeline(**p | dict(transformer=None)), "no transformer"),
                                        (lambda p: later(WanPipeline(**p), p["transformer"]), "two transformers")], ids=["two", "boundary", "only the second", "none", "a second one later"])
def test_a_loaded_pipeline_is_refused_alike(folder, make, says):
    with pytest.raises(UserError, match=says): VideoDiT(make(parts(folder)))

def later(pipe, transformer): pipe.transformer_2 = transformer; return pipe

# What a base is known by

def test_weights_have_one_name_in_any_precision(folder):
    of = {t: load(folder, t) for t in (torch.float32, torch.bfloat16, torch.float16)}
    for part in ("transformer", "text_encoder", "vae"): assert len({d.weights_names(part)[0] for d in of.values()}) == 1, part
    assert of[torch.float32].weights_names()[0] == fingerprint(of[torch.float32].transformer), "the name that concepts already carry"
    assert fingerprint(of[torch.float16].transformer) != fingerprint(of[torch.float32].transformer), "or the test has nothing to see"

@pytest.mark.parametrize("name", ["model", "diffusion_pytorch_model"])
def test_weights_in_several_files_have_the_same_name(folder, tmp_path, name):
    dit = load(folder)
    part = "text_encoder" if name == "model" else "transformer"
    getattr(dit.pipe, part).save_pretrained(tmp_path/part, max_shard_size="20KB")
    assert len(list((tmp_path/part).glob("*.safetensors"))) > 1
    assert stored.hash_weights(stored.stored_tensors(tmp_path/part).items()) == dit.weights_names(part)[0]

def test_weights_changed_in_memory_have_another_name(folder):
    dit = load(folder, torch.float16)
    before = dit.weights_names()[0]
    with torch.no_grad(): dit.transformer.proj_out.weight.flatten()[0].add_(1)
    assert before not in dit.weights_names()

@pytest.mark.parametrize("trained, used", [(torch.float16, torch.float32), (torch.float16, torch.bfloat16), (torch.float32, torch.float16)], ids=str)
def test_a_concept_goes_from_one_precision_to_another(folder, clip, trained, used):
    there, here = load(folder, trained), load(folder, used)
    adapter = SharedLoRA(there, 2)
    weights, tokens = adapter.member(0)
    about = dict(base=str(folder), appearance=APPEARANCE, motion=MOTION, rank=2, layers=adapter.layers)
    def concept(name): return Concept(weights, tokens, about | dict(fingerprint=name), dit=here)
    for name in (there.weights_names()[0], fingerprint(there.transformer)): # as it is now, and as earlier versions noted it
        with concept(name).attached(): pass
    with torch.no_grad(): here.transformer.patch_embedding.weight.mul_(2)
    del here.prints
    with pytest.raises(UserError, match="another base"), concept(there.weights_names()[0]).attached(): pass

def trainer(dit, out, **changes):
    "Of one example of ones."
    data = Examples(torch.ones(1, 16, 1, 4, 4), [torch.ones(1, 3, 32)], [["[v]"]])
    stage = road.stage(**dict(steps=1, batch=1, prior=0) | changes)
    return road.trainer(road.new(dit, 2), data, stage, out=out)

def test_another_base_is_another_run(folder, tmp_path):
    dit = load(folder)
    trainer(dit, tmp_path/"run").fit()
    trainer(load(folder, torch.bfloat16), tmp_path/"run", steps=2).fit()
    with torch.no_grad(): dit.transformer.patch_embedding.weight.mul_(2)
    with pytest.raises(UserError, match=r"\(another base\)"): trainer(dit, tmp_path/"run", steps=2).fit()

def test_checkpoints_of_another_format_are_refused_and_kept(folder, tmp_path):
    first = trainer(load(folder), tmp_path)
    first.fit()
    about, tensors = checkpoint.read(first.checkpoint)
    for old, says in ((dict(step=1, run="0"*16, history=[]), "0.1"), (about | dict(format=99, version="9.9"), "9.9")):
        checkpoint.write(first.checkpoint, tensors, old)
        before = first.checkpoint.read_bytes()
        with pytest.raises(UserError, match=rf"another version of sas_nb \({says}\).*choose another folder"): trainer(load(folder), tmp_path, steps=2).fit()
        assert first.checkpoint.read_bytes() == before


def test_text_embeddings_are_those_of_the_file(folder):
    "Early transformers 5 left the input embeddings of this checkpoint unread, because its config says that they are not tied."
    dit = load(folder)
    shared = wan.load_file(folder/"text_encoder"/"model.safetensors")["shared.weight"]
    assert torch.equal(dit.pipe.text_encoder.get_input_embeddings().weight, shared)
    assert torch.equal(dit.pipe.text_encoder.encoder.embed_tokens.weight, shared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(folder, dtype):
    dit = VideoDiT.load(folder, device="cpu", dtype=dtype)
    assert dit.dtype == dit.pipe.text_encoder.dtype == dtype and dit.pipe.vae.dtype == torch.float32
    assert dit.embed("a man").dtype == dtype and dit.encode(torch.rand(1, 5, 3, 32, 32)).dtype == torch.float32


def test_encoding_is_the_pipelines(folder):
    "Unit-variance latents are (mode - mean) / std, and decoding them gives what the pipeline's own code gives."
    dit, frames = load(folder), torch.rand(2, 5, 3, 32, 32)
    z, vae = dit.encode(frames), dit.pipe.vae
    assert z.shape == (2, 16, 2, 4, 4)
    mean, std = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad(): raw = vae.encode(frames.transpose(1, 2)*2-1).latent_dist.mode()
    torch.testing.assert_close(z*std+mean, raw, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 5, 4, 4), (3, 3, 4, 6), (1, 2, 48, 48)]) # clips, frames, height, width
@pytest.mark.parametrize("name", ["wan", "tiny"])
def test_decoding_is_the_pipelines(folder, name, shape):
    "One image, one clip, some clips, and one that is large enough to be left to diffusers."
    dit = load(folder) if name == "wan" else VideoDiT.load("tiny", device="cpu")
    z = torch.randn(shape[0], dit.pipe.vae.config.z_dim, *shape[1:])
    vae, (mean, std) = dit.pipe.vae, dit.family.statistics(dit.pipe.vae, z)
    with torch.no_grad(): raw = vae.decode(z*std+mean).sample
    torch.testing.assert_close(dit.decode(z), (raw.transpose(1, 2)/2+.5).clamp(0, 1), atol=1e-5, rtol=0)

def test_other_precisions_of_the_autoencoder_work_too(folder):
    dit, z = load(folder), torch.randn(1, 16, 2, 4, 4)
    single = dit.decode(z)
    dit.pipe.vae.double()
    torch.testing.assert_close(dit.decode(z), single, atol=1e-4, rtol=0)
    assert dit.encode(torch.rand(1, 5, 3, 32, 32)).dtype == torch.float32


# Sampling

def stock(pipe, text, noise, guidance, negative=None, steps=4):
    "The pipeline's own output, and not ours."
    return pipe(prompt_embeds=text, negative_prompt_embeds=negative, latents=noise, guidance_scale=guidance, num_inference_steps=steps, output_type="latent", **SIZE).frames


@pytest.mark.parametrize("guidance", [1., 5.])
@pytest.mark.parametrize("scheduler", [UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler])
def test_denoise_is_the_stock_pipeline(folder, scheduler, guidance):
    dit, pipe = load(folder), WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for p in (dit.pipe, pipe): p.scheduler = scheduler.from_config(p.scheduler.config, **(dict(shift=3.) if scheduler is FlowMatchEulerDiscreteScheduler else {}))
    noise, prompts = dit.noise([0], **SIZE), ["a man dancing", ""]
    text = dit.embed(prompts if guidance > 1 else prompts[:1])
    full = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    ours, theirs = dit.denoise(noise, text, 4, guidance), stock(pipe, full[:1], noise, guidance, full[1:])
    assert (theirs-noise).std() > .1, "the velocity is not nothing"
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("guidance", [1., 3.])
@pytest.mark.parametrize("scheduler", [UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler])
def test_a_clip_is_redrawn_by_the_difference_of_its_words(folder, monkeypatch, scheduler, guidance):
    "Where every prompt has one clip that the velocity leads to, straight, only the difference of the two clips is added, whatever the noise; and times the guidance."
    dit = load(folder)
    dit.pipe.scheduler = scheduler.from_config(dit.pipe.scheduler.config)
    clean, ends = dit.noise([0], **SIZE), dict(zip(("a man", "a woman", dit.defaults.negative), dit.noise([1, 2, 3], **SIZE)))
    texts = {k: dit.embed(k)[0] for k in ends}
    far = lambda a, b: float((a[:len(b)]-b[:len(a)]).square().mean()) # one may be padded
    def straight(x, t, text):
        where = torch.stack([ends[min(ends, key=lambda k: far(texts[k], w))] for w in text])
        return (x-where)/t.clamp_min(1e-3)[:, None, None, None, None]
    monkeypatch.setattr(dit, "velocity", straight, raising=False)
    man, woman, nothing = (ends[k][None] for k in ("a man", "a woman", dit.defaults.negative))
    there = nothing + guidance*(woman-nothing)
    for old, start in ((0., nothing), (1., man)):
        made = redraw(dit, clean, "a man", "a woman", 8, guidance, old)
        torch.testing.assert_close(made, clean + there - start, atol=.02, rtol=.02)
    alike = redraw(dit, clean, "a man", "a woman", 8, guidance, guidance)
    torch.testing.assert_close(alike, clean + guidance*(woman-man), atol=.02, rtol=.02)
    torch.testing.assert_close(redraw(dit, clean, "a man", "a man", 8, guidance, guidance), clean, atol=1e-4, rtol=1e-4)


def test_time_is_sigma_for_the_published_scheduler():
    "x_t = (1 - sigma) x0 + sigma noise, and the model's timestep is 1000 sigma, cut to a whole number."
    s = UniPCMultistepScheduler(**wan.SCHEDULER)
    s.set_timesteps(20)
    assert s.sigmas[-1] == 0 and s.sigmas[0] > .99
    assert ((s.timesteps/1000-s.sigmas[:-1]).abs() <= 1e-3).all()
    x0, noise, t = torch.randn(2, 3), torch.randn(2, 3), s.timesteps[5:6]
    torch.testing.assert_close(s.add_noise(x0, noise, t), (1-s.sigmas[5])*x0 + s.sigmas[5]*noise, atol=1e-6, rtol=1e-5)


# Learning

@pytest.mark.parametrize("dtype, checkpointing", [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)])
def test_learn(folder, clip, tmp_path, dtype, checkpointing):
    concept = teach(load(folder, dtype), clip, out=tmp_path/"run", checkpointing=checkpointing)
    assert len(concept.layers) == 20 and all(torch.isfinite(t).all() and t.dtype == torch.float32 for t in concept.weights.values())
    assert all(min(n) > 0 for n in concept.norms().values()), "both stages moved every layer"
    made = concept.generate(steps=2, guidance=1., **SIZE)
    assert made.shape == (5, 3, 32, 32) and torch.isfinite(made.frames).all()
    again = Concept.load(tmp_path/"run"/"concept", load(folder, dtype)).generate(steps=2, guidance=1., **SIZE)
    assert torch.equal(made.frames, again.frames)


def test_checkpointing_changes_nothing_but_memory(folder, clip):
    plain, saved = (teach(load(folder), clip, checkpointing=c).weights for c in (False, True))
    for k in plain: torch.testing.assert_close(plain[k], saved[k], atol=1e-6, rtol=1e-5)


@pytest.fixture
def calls(monkeypatch):
    "How often each encoder was asked, on any model."
    from diffusers import AutoencoderKLWan
    from transformers import UMT5EncoderModel
    count = dict(vae=0, text=0)
    def counted(cls, method, name):
        original = getattr(cls, method)
        def f(self, *args, **kwargs): count[name] += 1; return original(self, *args, **kwargs)
        monkeypatch.setattr(cls, method, f)
    counted(AutoencoderKLWan, "encode", "vae"); counted(UMT5EncoderModel, "forward", "text")
    return count


def test_a_second_run_asks_no_encoder(folder, clip, calls):
    first = teach(load(folder), clip)
    assert calls["vae"] and calls["text"]
    calls.update(vae=0, text=0)
    second = teach(load(folder), clip)
    assert calls == dict(vae=0, text=0)
    for k in first.weights: assert torch.equal(first.weights[k], second.weights[k])


def test_free_drops_the_encoders_before_training(folder, clip):
    dit = load(folder)
    freed, kept = teach(dit, clip, apart=True), teach(load(folder), clip)
    assert not dit.loaded & {"vae", "text_encoder"}
    own = VideoDiT(load(folder).pipe)
    own.free("vae", "text_encoder")
    assert own.pipe.vae is None and own.pipe.text_encoder is None
    with pytest.raises(UserError, match="freed"): own.embed("a man")
    for k in kept.weights: assert torch.equal(freed.weights[k], kept.weights[k])
    freed.dit = load(folder)
    assert torch.equal(freed.generate(steps=2, guidance=1., **SIZE).frames, kept.generate(steps=2, guidance=1., **SIZE).frames)


def test_a_concept_made_in_bf16_lives_on_the_same_base_in_fp32(folder, clip, tmp_path):
    "A GPU trains in bf16 and a laptop samples in fp32: it is the same base."
    teach(load(folder, torch.bfloat16), clip, out=tmp_path/"run")
    made = Concept.load(tmp_path/"run"/"concept", load(folder)).generate(steps=2, guidance=1., **SIZE)
    assert torch.isfinite(made.frames).all()


def test_samples_while_training_have_the_clips_size(folder, clip, tmp_path):
    teach(load(folder), clip, out=tmp_path/"run", sample_every=2)
    sample = Clip.load(tmp_path/"run"/"samples"/"motion-00002.mp4", size=(32, 32))
    assert len(sample) == 5


def test_a_size_that_does_not_fit_is_refused(folder):
    with pytest.raises(UserError, match="multiples of 16"): teach(load(folder), Clip(torch.rand(5, 3, 40, 40)))


# And away

@pytest.mark.parametrize("split", [False, True])
def test_export_runs_in_the_stock_pipeline(folder, clip, tmp_path, split):
    dit = load(folder)
    concept = teach(dit, clip)
    paths = concept.at(motion=.5).export(tmp_path/"lora", "diffusers", split=split)
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for path in paths: pipe.load_lora_weights(path, adapter_name=path.name)
    pipe.set_adapters([p.name for p in paths])
    noise, text = dit.noise([3], **SIZE), dit.prompt_embeds(concept.prompt, concept.tokens)
    theirs = stock(pipe, text, noise, 1.)
    def latents(concept):
        with concept.attached(): return dit.denoise(noise, dit.embed(concept.prompt, concept.tokens), 4, 1.)
    ours, bare = latents(concept.at(motion=.5)), latents(concept.at(0, 0))
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)
    assert (ours-bare).abs().max() > 10*(ours-theirs).abs().max(), "the adapter does something"
