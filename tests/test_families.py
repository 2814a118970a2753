"""Each family is its stock pipeline, with and without a concept; its numbers are its authors'; what does not fit is refused in one sentence."""
import json
from dataclasses import replace
from types import SimpleNamespace
import pytest, torch
from diffusers import WanPipeline
import road
import wan_folder as wan
from sas_nb import advice, hub
from sas_nb.advice import checked_size, GenerationConfig, size_for
from sas_nb.experts import split_name
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.data import Examples
from sas_nb.dit import VideoDiT
from sas_nb.family import known_family
from sas_nb.files import UserError
from sas_nb.flow import sample_times
from sas_nb.learning import learn
from sas_nb.memory import Memory
from sas_nb.recipe import Recipe, Run
from sas_nb.text import read_once
from sas_nb.train import Trainer
from sas_nb.video import preflight
from sas_nb.wan import Wan, WanExperts, WanTI2V

SIZE, PROMPTS = dict(num_frames=5, height=32, width=32), ("a [v] man in a red shirt", "he is [u] dancing")
ONE = ["diffusers", "WanTransformer3DModel"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("models")
    return {kind: wan.write(where/kind, kind) for kind in wan.KINDS}

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/"cache"))

def load(folder, **numbers):
    dit = VideoDiT.load(folder, device="cpu", dtype=torch.float32)
    dit.defaults = replace(dit.defaults, steps=4, **numbers)
    return dit

def stock(folder):
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def latents(pipe, text, noise, guidance, negative, **how):
    "The pipeline's own."
    return pipe(prompt_embeds=text, negative_prompt_embeds=negative, latents=noise, guidance_scale=guidance, num_inference_steps=6, output_type="latent", **SIZE, **how).frames

@pytest.fixture(scope="module")
def taught(folders, tmp_path_factory):
    "A concept on two experts."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SAS_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        dit, clip = load(folders["experts"]), Clip(torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)), 16., "noise")
        out = tmp_path_factory.mktemp("run")/"run"
        concept = learn(clip, PROMPTS, dit, road.recipe(both=dict(steps=4, batch=2, lr=3e-2, warmup=0, prior=0.), rank=2), Run(out=out, progress=False))
    return concept, out


# Numbers

def about(layers=30, heads=12, index=None, vae=16, side=8):
    "A checkpoint's configurations, as published."
    width = dict(in_channels=vae, out_channels=vae, num_layers=layers, num_attention_heads=heads, patch_size=[1, 2, 2])
    return dict(_class_name="WanPipeline", transformer=ONE) | (index or {}), width, dict(z_dim=vae, scale_factor_spatial=side)

SMALL, LARGE = about(), about(40, 40)
TI2V, A14B = about(30, 24, dict(expand_timesteps=True), 48, 16), about(40, 40, dict(transformer_2=ONE, boundary_ratio=.875))

@pytest.mark.parametrize("configuration, family, numbers", [
    (SMALL, Wan, dict(height=480, width=832, num_frames=81, fps=16., steps=50, guidance=6., guidance_2=None, shift=8., sides=(16, 16))),
    (LARGE, Wan, dict(height=480, width=832, num_frames=81, fps=16., steps=50, guidance=5., guidance_2=None, shift=5., sides=(16, 16))),
    (TI2V, WanTI2V, dict(height=704, width=1280, num_frames=121, fps=24., steps=50, guidance=5., guidance_2=None, shift=5., sides=(32, 32))),
    (A14B, WanExperts, dict(height=480, width=832, num_frames=81, fps=16., steps=40, guidance=4., guidance_2=3., shift=12., sides=(16, 16)))], ids=["1.3B", "14B", "5B", "A14B"])
def test_a_checkpoint_gets_its_authors_numbers(configuration, family, numbers):
    known = known_family(*configuration)
    config = GenerationConfig(**known.defaults(*configuration))
    assert known is family and {k: getattr(config, k) for k in numbers} == numbers
    assert config.frame_rule == (4, 1) and config.untested and config.warmup == 10 and 1e-5 < config.lr*config.lr_factor <= 1e-4 and config.negative.startswith("色调艳丽")

def test_channels_alone_are_no_family():
    assert known_family(*about(vae=48)) is Wan and known_family(*about(vae=16, side=16)) is WanTI2V

def test_the_tiny_model_has_its_own_and_was_tried():
    r = VideoDiT.of("tiny").defaults
    assert (r.lr, r.lr_factor, r.warmup, r.decay, r.untested, r.one_size, r.negative, r.shift) == (1e-3, 16., 0, "constant", False, True, "", None)

@pytest.mark.parametrize("kind", wan.KINDS)
def test_the_schedule_is_shifted_as_advised(folders, tmp_path, kind):
    dit = VideoDiT.load(folders[kind], device="cpu")
    assert dit.scheduler.config.flow_shift == (dit.defaults.shift or 3.) == dit.pipe.scheduler.config.flow_shift
    (folders[kind]/"sas_nb.json").write_text(json.dumps(dict(shift=7.)))
    try: assert VideoDiT.load(folders[kind], device="cpu").scheduler.config.flow_shift == 7.
    finally: (folders[kind]/"sas_nb.json").unlink()


# Equal to the stock pipeline

@pytest.mark.parametrize("guidance", [1., 3.])
@pytest.mark.parametrize("kind", wan.KINDS)
def test_a_sample_is_the_stock_pipelines(folders, kind, guidance):
    dit, pipe = load(folders[kind]), stock(folders[kind])
    assert dit.family is dict(plain=Wan, experts=WanExperts, ti2v=WanTI2V)[kind]
    theirs = pipe(prompt="a man dancing", negative_prompt=dit.defaults.negative, num_inference_steps=4, guidance_scale=guidance, latents=dit.noise([0], **SIZE), output_type="pt", **SIZE).frames[0]
    torch.testing.assert_close(dit.sample("a man dancing", guidance=guidance, **SIZE).frames, theirs, atol=1e-4, rtol=0)

@pytest.mark.parametrize("boundary", [.875, .9, .95])
@pytest.mark.parametrize("guidance", [(4., 3.), (4., 1.), 2.])
def test_experts_change_where_the_stock_pipeline_changes_them(folders, monkeypatch, guidance, boundary):
    pipe = stock(folders["experts"])
    pipe.register_to_config(boundary_ratio=boundary)
    dit = VideoDiT(pipe)
    calls = {"transformer": [], "transformer_2": []}
    for part in calls: getattr(pipe, part).register_forward_pre_hook(lambda m, args, kwargs, part=part: calls[part].append(float(kwargs["timestep"].flatten()[0])), with_kwargs=True)
    full = pipe.encode_prompt(["a man dancing", "a beach"], do_classifier_free_guidance=False, max_sequence_length=512)[0]
    noise, (first, second) = dit.noise([0], **SIZE), guidance if isinstance(guidance, tuple) else (guidance, None)
    theirs = latents(pipe, full[:1], noise, first, full[1:], guidance_scale_2=second)
    seen = {part: sorted(set(ts)) for part, ts in calls.items()}
    for ts in calls.values(): ts.clear()
    ours = dit.denoise(noise, dit.embed(["a man dancing", "a beach"]), 6, guidance)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)
    assert {part: [round(t, 2) for t in sorted(set(ts))] for part, ts in calls.items()} == {part: [round(t, 2) for t in ts] for part, ts in seen.items()} and all(seen.values())

def test_a_time_on_the_boundary_is_the_noisy_experts():
    for at in (.875, .9, .7, .123):
        high, low = WanExperts.experts(dict(pipeline=dict(boundary_ratio=at)))
        timestep = torch.tensor(round(at*1000))
        t = Wan.time_of(timestep).to(torch.float32)[None]
        assert bool(high.holds(t)) and not bool(low.holds(t)) and bool(low.holds(Wan.time_of(timestep-1)[None])), at

def test_a_batch_of_both_sides_is_that_of_each(folders):
    dit = load(folders["experts"])
    x, t, text = torch.randn(4, 16, 2, 4, 4), torch.tensor([.9, .1, .875, .5]), dit.embed("a man").expand(4, -1, -1)
    whole = dit.velocity(x, t, text)
    for k in range(4): torch.testing.assert_close(whole[k:k+1], dit.velocity(x[k:k+1], t[k:k+1], text[k:k+1]), atol=1e-5, rtol=1e-4)

def test_the_usual_guidance_of_two_experts_is_two_numbers(folders):
    dit = load(folders["experts"])
    assert dit.defaults.usual_guidance(.5) == (2., 1.5)
    torch.testing.assert_close(dit.sample("a man", **SIZE).frames, dit.sample("a man", guidance=(4., 3.), **SIZE).frames)
    assert not torch.equal(dit.sample("a man", **SIZE).frames, dit.sample("a man", guidance=4., **SIZE).frames)


# Concepts on two experts

def test_each_expert_has_coefficients_over_a_basis_of_its_own(taught):
    concept, _ = taught
    names = [name.removeprefix("transformer_2.") for name in concept.layers if name.startswith("transformer_2.")]
    assert len(names) == 20 and set(names) | {f"transformer_2.{n}" for n in names} == set(concept.layers)
    assert all(min(n) > 0 for n in concept.norms().values()), "both stages moved every layer of both"
    assert not torch.equal(concept.weights[f"{names[0]}.A"], concept.weights[f"transformer_2.{names[0]}.A"])
    assert concept.info["family"] == "Wan 2.2 A14B" and concept.info["untested"] == "untested on real weights"

@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("format", ["diffusers", "comfyui"])
def test_two_files_go_into_the_stock_pipeline(taught, folders, tmp_path, format, split):
    concept, _ = taught
    concept = concept.at(motion=.5)
    paths = concept.export(tmp_path/"lora", format, split)
    pipe, stem = stock(folders["experts"]), dict(diffusers="pytorch_lora_weights", comfyui="lora")[format]
    for path in paths:
        assert sorted(f.name for f in path.glob("*_noise.safetensors")) == [f"{stem}_high_noise.safetensors", f"{stem}_low_noise.safetensors"]
        pipe.load_lora_weights(path, weight_name=f"{stem}_high_noise.safetensors", adapter_name=path.name)
        pipe.load_lora_weights(path, weight_name=f"{stem}_low_noise.safetensors", adapter_name=path.name, load_into_transformer_2=True)
    pipe.set_adapters([p.name for p in paths])
    dit = concept.base()
    text, negative = dit.prompt_embeds(concept.prompt, concept.tokens), dit.prompt_embeds("")
    noise = dit.noise([3], **SIZE)
    def ours(c):
        with c.attached(): return dit.denoise(noise, dit.embed([concept.prompt, ""], concept.tokens), 6, (4., 3.))
    theirs = latents(pipe, text, noise, 4., negative, guidance_scale_2=3.)
    torch.testing.assert_close(ours(concept), theirs, atol=2e-3, rtol=2e-3)
    for part in ("appearance", "motion"): assert (ours(concept.at(**{part: 0.}))-theirs).abs().max() > .01, "each part does something"
    program = (tmp_path/"lora"/"README.md").read_text()
    assert "load_into_transformer_2=True" in program and "guidance_scale_2=" in program

def test_peft_gets_a_folder_for_each(taught, folders, tmp_path):
    from peft import PeftModel
    concept, _ = taught
    (path,) = concept.export(tmp_path/"lora", "peft")
    dit, pipe = concept.base(), stock(folders["experts"])
    pipe.transformer, pipe.transformer_2 = (PeftModel.from_pretrained(t, path/name) for t, name in ((pipe.transformer, "high_noise"), (pipe.transformer_2, "low_noise")))
    x, text = torch.randn(1, 16, 2, 4, 4), dit.embed("a man")
    for part, t in (("transformer", .95), ("transformer_2", .3)):
        with concept.attached(): ours = dit.velocity(x, torch.tensor([t]), text)
        theirs = dit.family.velocity(getattr(pipe, part).get_base_model(), x, torch.tensor([t]), text)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)

def test_a_concept_generates_what_the_stock_pipeline_does_and_comes_back_from_disk(taught, folders, tmp_path):
    concept, out = taught
    (path,) = concept.export(tmp_path/"lora")
    pipe, dit = stock(folders["experts"]), load(folders["experts"])
    again = Concept.load(out, dit)
    for name, into in (("high", {}), ("low", dict(load_into_transformer_2=True))): pipe.load_lora_weights(path, weight_name=f"pytorch_lora_weights_{name}_noise.safetensors", **into)
    text, negative = dit.prompt_embeds(concept.prompt, concept.tokens), dit.prompt_embeds(dit.defaults.negative)
    theirs = pipe(prompt_embeds=text, negative_prompt_embeds=negative, latents=dit.noise([3], **SIZE), guidance_scale=4., guidance_scale_2=3., num_inference_steps=4, output_type="pt", **SIZE).frames[0]
    torch.testing.assert_close(again.generate(seed=3).frames, theirs, atol=2e-3, rtol=0)

def test_a_concept_is_for_its_family(taught, folders):
    _, out = taught
    with pytest.raises(UserError, match="is for Wan 2.2 A14B, and '.*plain' is Wan 2.1: load it with"): Concept.load(out, load(folders["plain"])).generate(**SIZE)
    info = dict(taught[0].info, family="Wan 2.1")
    with pytest.raises(UserError, match="is for Wan 2.1, and"): Concept(taught[0].weights, taught[0].tokens, info, dit=load(folders["ti2v"])).base()

def test_another_second_expert_is_another_base(taught, folders):
    dit = load(folders["experts"])
    with torch.no_grad(): dit.transformers["transformer_2"].proj_out.weight.add_(1)
    with pytest.raises(UserError, match="another base"): Concept.load(taught[1], dit).base()


# Training experts

def trainer(dit, adapter, stage="appearance", **changes):
    data = Examples(torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0)), [dit.embed("a man")], [["[v]"]])
    stage = road.stage(stage, **dict(steps=4, batch=3, prior=0, lr=1e-2, warmup=0) | changes)
    return road.trainer(adapter, data, stage)

def test_experts_learn_in_turn_each_at_its_own_times(folders):
    dit = load(folders["experts"])
    t, rows = trainer(dit, road.new(dit, 2)), []
    for k in range(4):
        name = t.expert.name
        before = {k: p.detach().clone() for k, p in t.adapter.weights.items()}
        t.train_step()
        moved = {part for part, layer in (split_name(k) for k, p in t.adapter.weights.items() if not torch.equal(p, before[k]))}
        rows.append((name, bool((t.recent[-1][0] >= .875).all()), bool((t.recent[-1][0] < .875).all()), moved))
    assert rows == [("high", True, False, {"transformer"}), ("low", False, True, {"transformer_2"})]*2

@pytest.mark.parametrize("stage, expert, part", [("appearance", "low", "transformer_2"), ("motion", "high", "transformer")])
def test_a_stage_may_be_one_experts(folders, stage, expert, part):
    dit = load(folders["experts"])
    t = trainer(dit, road.new(dit, 2), stage, experts=expert)
    before = {k: p.detach().clone() for k, p in t.adapter.weights.items()}
    t.fit()
    moved = {split_name(k)[0] for k, p in t.adapter.weights.items() if not torch.equal(p, before[k])}
    assert moved == {part}

def test_an_expert_that_the_first_stage_left_out_learns_its_basis_in_the_second(folders):
    dit = load(folders["experts"])
    adapter = road.new(dit, 2)
    trainer(dit, adapter, experts="low").fit()
    second = trainer(dit, adapter, "motion")
    bases = {split_name(k)[0] for k in second.trained if k.endswith(".A")}
    assert bases == {"transformer"} and {split_name(k)[0] for k in second.trained if k.endswith(".B2")} == {"transformer", "transformer_2"}

def test_experts_that_are_not_there_are_refused(folders):
    for kind, names in (("plain", "low"), ("experts", "middle")):
        dit = load(folders[kind])
        with pytest.raises(UserError, match="has no expert"): trainer(dit, road.new(dit, 2), experts=names)
    with pytest.raises(UserError, match="experts is"): road.stage(experts=())
    with pytest.raises(UserError, match="one number for all"): load(folders["plain"]).sample("a man", guidance=(4., 3.), **SIZE)
    with pytest.raises(UserError, match="self-conditioning is for one"): learn(Clip(torch.rand(5, 3, 32, 32)), PROMPTS, load(folders["experts"]), road.recipe(both=dict(steps=1, batch=1, prior=0., self_conditioning=.5)), Run(progress=False))

def test_a_run_on_two_experts_goes_on_exactly(folders, tmp_path):
    dit = load(folders["experts"])
    def run(out, steps):
        t = trainer(dit, road.new(dit, 2), steps=steps, dropout=.2)
        t = Trainer(dit, t.adapter, t.data, t.stage, Run(out=out, progress=False))
        t.fit()
        return road.tensors(t.adapter)
    whole = run(tmp_path/"whole", 5)
    run(tmp_path/"cut", 3)
    again = run(tmp_path/"cut", 5)
    for k in whole: assert torch.equal(whole[k], again[k]), k

@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
@pytest.mark.parametrize("shift", [1., 4.])
def test_times_of_an_expert_are_those_of_the_whole_that_fall_to_it(kind, shift):
    whole = sample_times(40000, torch.Generator().manual_seed(0), kind, shift)
    for low, high in ((0., .875), (.875, 1.)):
        own, mine = sample_times(4000, torch.Generator().manual_seed(1), kind, shift, low=low, high=high), whole[(whole >= low) & (whole < high)]
        assert own.min() >= low and (own.max() < high or high == 1)
        for q in (.1, .5, .9): assert abs(float(own.quantile(q))-float(mine.quantile(q))) < .02


# Sizes

@pytest.mark.parametrize("clip, size", [((960, 540), (832, 480)), ((540, 960), (480, 832)), ((720, 1280), (480, 832)), ((1000, 1000), (624, 624))])
def test_a_film_keeps_its_proportions(clip, size): assert size_for(GenerationConfig(), *clip) == size

@pytest.mark.parametrize("sides", [(16, 16), (32, 32), (16, 8), (32, 16)])
@pytest.mark.parametrize("clip", [(1920, 1080), (1000, 1000), (900, 1600), (1440, 1080), (1080, 2520), (333, 777)])
def test_a_size_of_any_film_fits_the_model_and_is_no_larger(sides, clip):
    r = GenerationConfig(height=704, width=1280, sides=sides)
    h, w = size_for(r, *clip)
    assert h % sides[0] == w % sides[1] == 0 and h*w <= r.height*r.width and (h > w) == (clip[0] > clip[1]) or clip[0] == clip[1]
    assert advice.lost((h, w), *clip) < .12

@pytest.mark.parametrize("text, says", [("832", "is not a size"), ("480x", "is not a size"), ("480x-832", "is not a size"), ("480x830", "ask for 480x832"), ("1x1", "ask for 16x16"), ("axb", "is not a size")])
def test_a_size_that_does_not_fit_is_refused(text, says):
    with pytest.raises(UserError, match=says) as e: checked_size(GenerationConfig(), text)
    assert str(e.value).count("\n") == 0


def test_a_patch_may_be_higher_than_wide(tmp_path):
    index, transformer, vae = about()
    config = GenerationConfig(**Wan.defaults(index, transformer | dict(patch_size=[1, 2, 1]), vae))
    assert config.sides == (16, 8)
    config.height, config.width = 64, 72
    assert size_for(config, 64, 72) == checked_size(config, "64x72") == (64, 72) and size_for(config, 72, 64)[0] % 16 == 0
    with pytest.raises(UserError, match="heights are multiples of 16 and widths of 8: ask for 64x64"): checked_size(config, "72x64")
    (tmp_path/"sas_nb.json").write_text('{"sides": [16, 8]}')
    assert GenerationConfig.read(tmp_path).sides == (16, 8)


# A small pair of experts to play with

def test_guidance_may_be_none_for_one_of_two_experts(taught):
    concept, _ = taught
    c = replace(concept, info=concept.info | dict(sampling=dict(guidance_factor=1., negative_scale=.5, edit_guidance=2.)))
    for guidance in ((4., 1.), (1., 4.), (1., 1.)):
        both = c.generate(["a [v] man", "a [v] man runs"], guidance=guidance, **SIZE)
        for prompt, clip in zip(("a [v] man", "a [v] man runs"), both): torch.testing.assert_close(c.generate(prompt, guidance=guidance, **SIZE).frames, clip.frames, atol=1e-3, rtol=0)


def test_the_tiny_model_becomes_two_experts(tmp_path):
    from sas_nb.lab.experts import two_experts
    two, one, size = VideoDiT.load(two_experts(tmp_path/"two")), VideoDiT.of("tiny"), dict(steps=2, num_frames=5)
    assert [e.part for e in two.experts] == ["transformer", "transformer_2"] and two.defaults == one.defaults
    assert "files" not in json.loads((tmp_path/"two/model_index.json").read_text()) # diffusers warns of what it does not know
    prompt = "a man in a red shirt in a park. he is walking"
    torch.testing.assert_close(two.sample(prompt, **size).frames, one.sample(prompt, **size).frames, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="is there already"): two_experts(tmp_path/"two")
    with pytest.raises(UserError, match="is not a folder"): two_experts(tmp_path/"three", "somebody/something")
    with pytest.raises(UserError, match="boundary"): two_experts(tmp_path/"three", boundary=1.)


# Films, revisions and precisions

def film(path, height, width, n=9):
    ramp = torch.linspace(0, 1, n)[:, None, None, None]*torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return str(Clip(ramp, 16.).save(path, scale=1))

@pytest.mark.parametrize("shape, size", [((96, 54), (48, 32)), ((54, 96), (32, 48)), ((90, 90), (32, 48))])
def test_portrait_stays_portrait(folders, tmp_path, shape, size):
    from sas_nb.learning import fit_clip
    dit = load(folders["plain"], height=32, width=48, num_frames=9)
    clip = fit_clip(dit, film(tmp_path/"film.mp4", *shape))
    assert clip.shape == (9, 3, *size) and clip.report.size == size

@pytest.mark.parametrize("rule, asked, got", [((4, 1), 9, 9), ((8, 1), 9, 9), ((8, 1), 17, 9), ((6, 2), 8, 8), ((1, 0), 7, 7)])
def test_a_film_has_a_length_of_the_models_rule(tmp_path, rule, asked, got):
    path = film(tmp_path/"film.mp4", 32, 32, 10)
    clip = Clip.load(path, num_frames=asked, fps=16., rule=rule)
    assert len(clip) == preflight(path, asked, 16., rule=rule).num_frames == got
    if rule == (8, 1): assert "8·1 + 1" in str(clip.report)
    with pytest.raises(UserError, match=r"needs 8n \+ 1 .*ask for 9 or 17"): Clip.load(path, num_frames=13, rule=(8, 1))
    with pytest.raises(UserError, match="a motion needs at least 17"): Clip.load(path, num_frames=33, fps=8., rule=(16, 1))

def command(*args):
    from typer.testing import CliRunner
    from sas_nb.cli import app
    return CliRunner().invoke(app, list(map(str, args)))

@pytest.mark.parametrize("args, says", [(("--size", "30x64"), "ask for 32x64"), (("--size", "big"), "is not a size"), (("--frames", "8"), "ask for 5 or 9"), (("--revision", "main"), "has no revisions"),
                                        (("--dtype", "fp8", "--picture", "x.png"), "no precision 'fp8': choose fp32, bf16, fp16"), (("--dtype", "fp8"), "no precision 'fp8'")])
def test_the_command_says_what_does_not_fit(folders, tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    answer = command("inspect", film(tmp_path/"film.mp4", 64, 64), "--model", folders["plain"], *args)
    assert answer.exit_code and says in " ".join(answer.output.split()), answer.output

def test_the_command_takes_a_size_and_a_precision(folders, tmp_path):
    answer = command("inspect", film(tmp_path/"film.mp4", 64, 64), "--model", folders["plain"], "--size", "48x32", "--frames", "5", "--json")
    assert json.loads(answer.stdout)["size"] == [48, 32]
    answer = command("inspect", film(tmp_path/"film.mp4", 64, 64), "--model", folders["plain"], "--size", "32x32", "--frames", "5", "--dtype", "bf16", "--picture", tmp_path/"seen.png")
    assert not answer.exit_code and (tmp_path/"seen.png").exists(), answer.output

def test_generate_takes_a_size_and_knows_its_family(taught, folders, tmp_path):
    answer = command("generate", taught[1], "--size", "32x48", "--steps", "1", "--out", tmp_path/"made.mp4", "--dtype", "fp32", "-q")
    assert not answer.exit_code, answer.output
    made = Clip.load(tmp_path/"made.mp4")
    assert made.shape[2] < made.shape[3]
    for args, says in ((("--size", "33x48"), "ask for 32x48"), (("--model", folders["plain"]), "is for Wan 2.2 A14B, and"), (("--model", tmp_path/"nobody"), "no model folder")):
        answer = command("generate", taught[1], "--out", tmp_path/"other.mp4", "-q", *args)
        assert answer.exit_code and says in " ".join(answer.output.split()), answer.output

class Answer:
    def __init__(self, code): self.headers = {"X-Error-Code": code} if code else {}

@pytest.mark.parametrize("code, says", [("RevisionNotFound", "There is no revision 'old' of 'a/b' on the hub"), ("RepoNotFound", "There is no model 'a/b' on the hub"), ("GatedRepo", "accepted its terms")])
def test_what_the_hub_has_not_is_said_in_one_sentence(monkeypatch, code, says):
    asked = []
    class Session:
        def head(self, url, **k):
            asked.append(url)
            return Answer(code)
    monkeypatch.setattr("huggingface_hub.get_session", Session)
    with pytest.raises(UserError, match=says) as e: VideoDiT.load("a/b", revision="old")
    assert "/old/" in asked[0] and str(e.value).count("\n") == 0

def test_a_revision_is_read_and_its_commit_kept(folders, monkeypatch, tmp_path):
    from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
    from sas_nb import hub
    read = []
    def from_hub(kind, source, subfolder="", revision=None, **kwargs):
        read.append(revision)
        return json.loads((folders["plain"]/subfolder/("config.json" if subfolder else "model_index.json")).read_text())
    for kind in (DiffusionPipeline, WanTransformer3DModel, AutoencoderKLWan): monkeypatch.setattr(kind, "load_config", classmethod(from_hub))
    monkeypatch.setattr(hub, "_offline", lambda name, revision=None: False)
    monkeypatch.setattr(hub, "_cached", lambda name, revision: f"/cache/snapshots/0123abc/{revision}.json")
    checkpoint = hub.Checkpoint("a/b", "cpu", revision="v1")
    assert set(read) == {"v1"} and checkpoint.commit == "0123abc"
    assert hub.defaults_of("a/b", revision="v1").fps == 16. and set(read) == {"v1"}
    monkeypatch.setattr(checkpoint.family.pipeline, "from_pretrained", classmethod(lambda *a, **k: read.append(k["revision"]) or (_ for _ in ()).throw(OSError("stop"))))
    with pytest.raises(UserError): checkpoint.pipeline()
    assert read[-1] == "v1"
    with pytest.raises(UserError, match="has no revisions"): hub.Checkpoint(folders["plain"], "cpu", revision="v1")


# Nothing outside a family assumes Wan

class Ordered(Wan.text):
    "A word joins at the end, and ones are padding."
    @staticmethod
    def add(text, placeholders, tokens):
        given = [[tokens[f].to(text) for f in fs if f in tokens] for fs in placeholders]
        return torch.cat([text, torch.stack([torch.stack(g) for g in given])], 1) if given[0] else text
    @staticmethod
    def join(texts, least=0):
        longest = max(least, *(t.shape[1] for t in texts))
        return torch.cat([torch.cat([t, t.new_ones(len(t), longest-t.shape[1], t.shape[2])], 1) for t in texts])
    @staticmethod
    def short(text): return text
    @staticmethod
    def words(text): return text[text.ne(1).any(-1)]

class Other(Wan):
    "Clips of 8n + 1 frames, sides of 32, latents of another shape, time counted down from 1 in other steps, another way with text."
    name, text = "Other", Ordered
    @classmethod
    def frame_rule(cls, configuration): return 8, 1
    @classmethod
    def sides(cls, configuration): return 32, 32
    @classmethod
    def latents_of(cls, configuration, T, H, W): return 7, (T-1)//8+1, H//32, W//32
    @staticmethod
    def work(configuration): return dict(blocks=3, width=10, heads=2, hidden=20, codec=4)
    @classmethod
    def grid(cls, configuration, T, H, W): return cls.latents_of(configuration, T, H, W)[1:]
    @staticmethod
    def time_of(timestep): return timestep/500
    @staticmethod
    def velocity(transformer, x, t, text): return t.view(-1, 1, 1, 1, 1)*x

def test_another_family_says_what_is_its_own(folders):
    dit = load(folders["plain"])
    dit.family = Other
    assert dit.noise([0], 17, 64, 96).shape == (1, 7, 3, 2, 3)
    for size, says in (((13, 64, 64), r"8n\+1 \(9 and 17 are near\)"), ((17, 48, 64), "multiples of 32")):
        with pytest.raises(UserError, match=says): dit.check_size(*size)
    vector = torch.full((32,), 7.)
    text = dit.embed(["a [v] man", "a [v] man dancing on the beach"], {"[v]": vector})
    assert torch.equal(text[:, -1], vector.expand(2, -1)), "the word is at the end"
    seen = []
    dit.denoise(torch.zeros(1, 7, 2, 2, 2), text[:1], 3, 1., velocity=lambda x, t, text: seen.append(float(t[0])) or x)
    assert seen == [pytest.approx(float(t)/500) for t in dit.schedule(3).timesteps]
    data = Examples(torch.randn(2, 7, 2, 2, 2), [dit.embed("a man"), dit.embed("a man dancing on the beach")], [["[v]"], ["[v]"]], reading=Ordered)
    latents, text, _ = data.batch([0, 1])
    assert torch.equal(text[0, -1], torch.ones(32)) or text.shape[1] == data.texts[0].shape[1]
    batch = road.trainer(road.new(dit, 2), data, road.stage(batch=2, prior=0, token_mask=0.)).draw(range(1), 0)
    assert not batch.text[:, -1].any() and batch.text.shape[1] == text.shape[1]+1, "the word is still nothing, and at the end"

def test_what_there_is_to_compute_is_asked_of_the_family(monkeypatch):
    "A configuration whose numbers have other names."
    from sas_nb import plan, shorter
    about, shape, tokens, wide = dict(pipeline={}, transformer={}, vae={}), (17, 64, 96), 3*2*3, Other.work({}) | dict(width=10**4)
    monkeypatch.setattr(plan, "_weights", lambda dit: 7.)
    dit = SimpleNamespace(family=Other, configuration=about, device=torch.device("cuda"))
    assert plan.at_most(dit, shape, Recipe.default(), 1000) == 21+8*17*64*96*4*4*16
    monkeypatch.setattr(Other, "work", staticmethod(lambda configuration: wide))
    assert plan.at_most(dit, shape, Recipe.default(), 1000) == 21+3*64*tokens*(24*10**4+4*20)*5
    monkeypatch.undo()
    sketch = SimpleNamespace(family=Other, configurations=about)
    assert plan._weights_of(sketch) == 300 and shorter.pass_products(sketch, shape) == 3*tokens*(600+400+20*tokens)
    assert hub.whole(dict(_class_name="WanTransformer3DModel"))["num_layers"] == 40 and hub.whole(dict(_class_name="LTXVideoTransformer3DModel", x=1))["num_layers"] == 28 and hub.whole({}) == {}

def test_texts_read_together_are_shortened_by_their_family(folders, monkeypatch):
    dit, asked = load(folders["plain"]), []
    class Telling(Wan.text):
        @staticmethod
        def short(text): return asked.append(text.shape) or Wan.text.short(text)
    class Family(Wan): text = Telling
    dit.family, dit.memory = Family, Memory(apart=True)
    monkeypatch.setattr(dit, "embed", lambda prompts: torch.ones(len(prompts), 5, 32))
    texts = read_once(dit, ["a man", "a man dancing on the beach"])
    assert len(asked) == 2 and len(texts) == 2

@pytest.mark.parametrize("size", [1., 1e-2])
def test_words_are_folded_into_both_experts(taught, size):
    "Loud ones and faint ones."
    from sas_nb.experts import split_name
    from sas_nb.folded import fold_words
    g = torch.Generator().manual_seed(0)
    concept = replace(taught[0], tokens={k: size*torch.randn(v.shape, generator=g) for k, v in taught[0].tokens.items()})
    folded = fold_words(concept, rank=4, steps=60, samples=6, queries=16, measured=6)
    assert {split_name(l)[0] for l in folded.layers} == {"transformer", "transformer_2"} and .2 < folded.kept < 1

def test_an_update_that_does_not_help_is_left_out(taught, monkeypatch):
    from sas_nb import folded
    monkeypatch.setattr(folded, "_kept", lambda *args: -3.)
    concept = replace(taught[0], tokens={k: torch.ones_like(v) for k, v in taught[0].tokens.items()})
    assert folded.fold_words(concept, rank=2, steps=2, samples=6, queries=4, measured=6) == folded.Folded({}, 0, 0.)


def test_a_concept_on_some_experts(tmp_path):
    "On both it is the concept of the model that the pair was made of, on none the model; on one, half of it is away."
    from sas_nb.atlas import load_zoo
    from sas_nb.lab.experts import on_experts, two_experts
    one = load_zoo(names=["woman-00"])["woman-00"]
    two = VideoDiT.load(two_experts(tmp_path / "two", boundary=.6))
    how = dict(seed=0, steps=3, num_frames=5)
    clips = {name: c.generate(one.prompt, **how).frames for name, c in dict(
        own=one, both=on_experts(one, two), bare=one.at(0, 0), none=on_experts(one, two, (), ()), low=on_experts(one, two, ("low",))).items()}
    assert (clips["both"]-clips["own"]).abs().max() < 1e-3 and (clips["none"]-clips["bare"]).abs().max() < 1e-3
    assert min((clips["low"]-clips[k]).abs().max() for k in ("own", "bare")) > .02
    w = on_experts(one, two, ("high",), ("low",)).weights
    assert w.keys() == {f"{part}{k}" for part in ("", "transformer_2.") for k in one.weights}
    zero = {k for k, v in w.items() if not v.any()}
    assert zero == {f"transformer_2.{k}" for k in one.weights if k.endswith("B1")} | {k for k in one.weights if k.endswith("B2")}
