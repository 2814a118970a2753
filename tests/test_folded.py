"Words folded into a LoRA: plain prompts in stock programs come near to the prompts with the words."
import json
from dataclasses import replace
from functools import partial

import pytest, torch
from diffusers import WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from sas_nb import export
from sas_nb.cache import data_path
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.folded import _reading, fold_words, Folded
from sas_nb.lab.draw import render
from sas_nb.lab.world import heldout_spec
from sas_nb.learning import learn
from sas_nb.memory import Memory
from sas_nb.prompt import Prompt
from sas_nb.recipe import Recipe, Run

SIZE = dict(num_frames=5, height=64, width=64)

@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", device="cpu")

@pytest.fixture(scope="module")
def concept(dit):
    recipe = Recipe.paper().with_(both=dict(steps=2, batch=2, prior=0., lr=1e-2, token_lr=0., token_init=1.5), rank=2)
    return learn(render(heldout_spec(1), fps=12)[:5], ("a [v] man in a red shirt in a park", "he is [u] dancing"), dit, recipe, Run(progress=False))

few = partial(fold_words, rank=6, steps=60, samples=3, measured=3)

@pytest.fixture(scope="module")
def folded(concept): return few(concept)

@pytest.fixture
def quick(monkeypatch, folded): monkeypatch.setattr(export, "fold_words", lambda concept: folded)

def stock():
    pipe = WanPipeline.from_pretrained(data_path("tiny"), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def latents(pipe, dit, **text):
    return pipe(**text, latents=dit.noise([3], 5), num_inference_steps=4, guidance_scale=4., output_type="latent", **SIZE).frames

@pytest.mark.parametrize("format, file", [("diffusers", "pytorch_lora_weights"), ("comfyui", "lora")])
@pytest.mark.parametrize("place", ["in a park", "on a beach"])
def test_a_plain_prompt_in_a_stock_pipeline_is_nearer_to_the_words(concept, dit, quick, tmp_path, format, file, place):
    prompt = concept.prompt.replace("in a park", place)
    texts = dict(prompt=Prompt(prompt).plain, negative_prompt="")
    shown = {}
    for words in ("beside", "folded"):
        folder, = concept.export(tmp_path/words, format, words=words)
        pipe = stock()
        pipe.load_lora_weights(folder, weight_name=f"{file}.safetensors")
        shown[words] = latents(pipe, dit, **texts)
        if words == "beside":
            embeds = dit.prompt_embeds(prompt, concept.tokens), dit.prompt_embeds("")
            wanted = latents(pipe, dit, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1])
    away = {k: float((x-wanted).square().mean()) for k, x in shown.items()}
    assert away["folded"] < .5*away["beside"], away

def test_what_is_measured_is_what_happens(concept, folded):
    "All is kept by no update where words and plain prompts are the same, and nothing by one that does nothing."
    from sas_nb.folded import _kept, _prompts
    nothing = {}
    tried = _prompts(concept)[2]
    with concept.attached():
        assert abs(_kept(concept, nothing, tried, SIZE, 2)) < 1e-5
    assert .5 < folded.kept < 1 and len(folded.layers) == 2*concept.dit.transformer.config.num_layers

def test_others_prompts_and_the_model_stay(concept, dit, folded):
    "The update leaves somebody else's prompt nearer to where it was than it moves the concept's own."
    x, t = dit.noise([9], **SIZE), torch.tensor([.7])
    updates = {}
    for layer, pair in folded.layers.items(): updates.setdefault(layer.rsplit(".", 1)[0], []).append(pair)
    moved = {}
    for prompt in (Prompt(concept.prompt).plain, "a woman in a green shirt and white trousers on a beach. she is waving"):
        with concept.attached(), torch.no_grad():
            before = dit.velocity(x, t, dit.embed(prompt))
            with _reading(dit, updates): during = dit.velocity(x, t, dit.embed(prompt))
            assert torch.equal(dit.velocity(x, t, dit.embed(prompt)), before)
        moved[prompt] = float((during-before).square().mean())
    own, other = moved.values()
    assert other < .5*own, moved

def test_words_that_say_nothing_are_folded_at_once(concept):
    mute = replace(concept, tokens={k: torch.zeros_like(v) for k, v in concept.tokens.items()})
    assert fold_words(mute) == Folded({}, 0, 1.)

def test_the_readme_says_what_was_lost_and_the_header_what_it_is(concept, quick, folded, tmp_path):
    concept = replace(concept, info=concept.info | dict(revision="0123abc"))
    folder, = concept.export(tmp_path/"e", "comfyui", words="folded", licence="CC0-1.0")
    with safe_open(folder/"lora.safetensors", "pt") as f: said = f.metadata()
    tensors = load_file(folder/"lora.safetensors")
    assert said["licence"] == said["modelspec.license"] == "CC0-1.0" and said["prompt"] == concept.prompt
    assert (said["base"], said["revision"]) == (concept.info["base"], "0123abc")
    assert json.loads(said["recipe"]) == concept.info["recipe"] and said["ss_network_dim"] == said["rank"] == "8"
    assert said["modelspec.hash_sha256"] == export._hash(tensors) and said["modelspec.hash_sha256"].startswith("0x")
    assert {v.shape[0] for k, v in tensors.items() if "lora_A" in k} == {8}, "one rank, since loaders differ about others"
    about, words = json.loads((folder/"export.json").read_text()), (folder/"README.md").read_text()
    assert f"{100*folded.kept:.0f} % stays" in about["lost"]
    assert about["words"] == "folded" and about["kept"] == round(folded.kept, 3) and "[v]" not in about["prompt"]
    assert f"{100*folded.kept:.0f} % stays" in words and "lost there" not in words and not (folder/"tokens.safetensors").exists()

def test_the_folded_readme_is_a_program(concept, quick, tmp_path, monkeypatch):
    import re
    concept.export(tmp_path/"e", words="folded")
    code, = re.findall(r"```python\n(.*?)```", (tmp_path/"e"/"README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path/"e")
    monkeypatch.setattr(VideoDiT, "load", lambda name: VideoDiT(stock(), name, replace(concept.dit.defaults, steps=2)))
    exec(code, ran := {})
    assert ran["frames"].shape == (5, 3, 64, 64) and (tmp_path/"e"/"video.mp4").exists()

@pytest.mark.parametrize("how, says", [(dict(words="inside"), "must be 'beside'"), (dict(words="folded", split=True), "without split")])
def test_what_cannot_be_folded(concept, tmp_path, how, says):
    with pytest.raises(UserError, match=says): concept.export(tmp_path/"e", **how)
    assert not list(tmp_path.iterdir())

def test_blocks_on_the_host_cannot_be_folded(concept, dit, monkeypatch):
    monkeypatch.setattr(dit, "memory", Memory(swapped=1))
    with pytest.raises(UserError, match="swapped=0"): fold_words(concept)


# What keeps more where only plain prompts can be written

def test_a_folded_concept_is_what_is_exported(concept, folded, monkeypatch):
    import words
    monkeypatch.setattr(words, "fold_words", lambda concept: folded)
    ours, theirs = words.folded(concept).adapters()["concept"], export._joined(concept.adapters()["concept"], folded)
    assert ours.keys() == theirs.keys() and not any(v.any() for v in words.folded(concept).tokens.values())
    for layer, (A, B) in theirs.items(): torch.testing.assert_close(ours[layer][1]@ours[layer][0], B@A, atol=1e-5, rtol=1e-4)

def test_the_words_script_rehearsed(tmp_path, monkeypatch):
    import words
    from sas_nb.lab.rows import load_table
    monkeypatch.setattr(words, "ROOT", tmp_path)
    monkeypatch.setattr(words, "fold_words", partial(fold_words, rank=2, steps=2, samples=2, measured=2))
    short = dict(people=1, steps1=1, steps2=1, sampling_steps=1, out=tmp_path/"words.csv")
    words.main(**short)
    rows = load_table(tmp_path/"words.csv")
    ways = [r["method"] for r in rows]
    assert {w: ways.count(w) for w in ways} == dict.fromkeys(("with its words", "words folded in", "words left out", "learned without words"), 8)
    assert all(-1 <= r["identity"] <= 1 for r in rows)
    monkeypatch.setattr(words, "measured", lambda *args: pytest.fail("it was there already"))
    once = (tmp_path/"words.csv").read_text()
    words.main(**short)
    assert (tmp_path/"words.csv").read_text() == once
