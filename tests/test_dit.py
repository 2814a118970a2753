"""A model's parts are read when they are asked for, dropped on request, and shared by those who name the same model."""
import functools, shutil, threading
import pytest, torch
from diffusers import DiffusionPipeline, WanPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
import wan_folder as wan
from sas_nb.dit import _shared, VideoDiT
from sas_nb.fast import OnePad
from sas_nb.files import UserError
from sas_nb.prompt import Prompt

FRAMES, SIZE = torch.rand(1, 5, 3, 32, 32), (5, 32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return wan.write(tmp_path_factory.mktemp("dit")/"wan")

@pytest.fixture
def dit(folder): return VideoDiT.load(folder, "cpu", torch.float32)

@pytest.fixture
def own(folder):
    "Somebody's own pipeline."
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.fixture
def shared(monkeypatch):
    "A process that has not loaded anything."
    fresh = functools.lru_cache(_shared.__wrapped__)
    monkeypatch.setattr("sas_nb.dit._shared", fresh)
    return fresh


# what is in memory

def test_nothing_is_read_by_load(folder, monkeypatch):
    monkeypatch.setattr(WanPipeline, "from_pretrained", lambda *a, **k: pytest.fail("read the weights"))
    dit = VideoDiT.load(folder, "cpu", torch.bfloat16)
    assert not dit.loaded and (dit.device, dit.dtype, dit.text_width) == (torch.device("cpu"), torch.bfloat16, 32) and "nothing" in repr(dit)
    assert dit.family.factors(dit.configuration) == (4, 8) and dit.noise([0], *SIZE).shape == (1, 16, 2, 4, 4)
    with pytest.raises(UserError, match="does not fit"): dit.check_size(6, 32, 32)
    assert not dit.loaded


@pytest.mark.parametrize("use, parts", [
    (lambda d: d.encode(FRAMES), {"vae"}), (lambda d: d.decode(torch.zeros(1, 16, 1, 4, 4)), {"vae"}), (lambda d: d.check_words("a man"), {"tokenizer"}), (lambda d: d.too_long("a man"), {"tokenizer"}),
    (lambda d: d.embed("a [v] man"), {"tokenizer", "text_encoder"}), (lambda d: d.schedule(2), {"scheduler"}), (lambda d: d.prints, set()), (lambda d: d.transformers, {"transformer"}),
    (lambda d: d.velocity(d.noise([0], *SIZE), torch.tensor([.5]), torch.zeros(1, 2, 32)), {"transformer"}), (lambda d: d.weights_names("vae"), set()),
    (lambda d: d.pipe, {"tokenizer", "text_encoder", "transformer", "vae", "scheduler"})],
    ids=["encode", "decode", "words", "long", "embed", "schedule", "prints", "transformers", "velocity", "names", "pipe"])
def test_what_is_read_by(dit, use, parts):
    use(dit)
    assert dit.loaded == parts
    before = {name: getattr(dit, name) for name in parts}
    use(dit)
    assert all(getattr(dit, name) is part for name, part in before.items()), "and read once"


def test_parts_are_frozen_where_they_should_run(dit):
    for name in ("transformer", "vae", "text_encoder"):
        part = getattr(dit, name)
        assert not part.training and not any(p.requires_grad for p in part.parameters())
    assert dit.transformers == {"transformer": dit.transformer} and all(type(b.attn2.processor) is OnePad for b in dit.transformer.blocks)


def test_freed_parts_are_read_again(dit):
    z, text = dit.encode(FRAMES), dit.embed("a man")
    encoder = dit.text_encoder
    dit.free("vae", "text_encoder")
    assert dit.loaded == {"tokenizer"}
    assert torch.equal(dit.embed("a man"), text) and dit.loaded == {"tokenizer"}, "what was read is remembered"
    assert torch.equal(dit.embed(["a man", "a red man"])[:1, :text.shape[1]-1], text[:, :-1]) and dit.text_encoder is not encoder
    assert torch.equal(dit.encode(FRAMES), z) and "vae" in dit.loaded
    dit.free()
    dit.free("scheduler")
    with pytest.raises(UserError, match="no part 'encoder': choose of tokenizer"): dit.free("vae", "encoder")
    assert "vae" in dit.loaded, "all or nothing"


def test_a_freed_part_leaves_the_pipeline_too(dit):
    pipe, transformer = dit.pipe, dit.transformer
    pipe.scheduler = other = type(pipe.scheduler).from_config(pipe.scheduler.config)
    dit.free("vae")
    assert pipe.vae is None and "vae" not in dit.loaded and dit.scheduler is other and dit.transformer is transformer
    again = dit.pipe
    assert again.vae is dit.vae is not None and again.transformer is transformer and again.scheduler is other and dit.pipe is again


def test_the_pipeline_is_stock(dit, own):
    dit.pipe.scheduler = own.scheduler
    given = dict(prompt="a man", num_inference_steps=2, guidance_scale=3., height=32, width=32, num_frames=5, latents=dit.noise([0], *SIZE), output_type="latent")
    torch.testing.assert_close(dit.pipe(**given).frames, own(**given).frames, atol=1e-4, rtol=0)


def test_two_threads_get_one_part(dit, monkeypatch):
    reads, part, ready, got = [], type(dit.checkpoint).part, threading.Barrier(2), []
    monkeypatch.setattr(type(dit.checkpoint), "part", lambda self, name, *how: reads.append(name) or part(self, name, *how))
    def ask():
        ready.wait(60)
        got.append(dit.vae)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert reads == ["vae"] and got[0] is got[1]
    with dit.lock, dit.lock: assert dit.tokenizer # whoever holds the model may take it again


# somebody's own pipeline

def test_an_own_pipeline_is_used_as_it_is(own, dit):
    before = [type(b.attn2.processor) for b in own.transformer.blocks]
    wrapped, x, t = VideoDiT.of(own), dit.noise([0], *SIZE), torch.tensor([.5])
    assert wrapped.pipe is own and wrapped.loaded == dit.loaded | set(dit.family.parts)
    torch.testing.assert_close(wrapped.velocity(x, t, wrapped.embed("a man")), dit.velocity(x, t, dit.embed("a man")), atol=1e-5, rtol=1e-4)
    assert [type(b.attn2.processor) for b in own.transformer.blocks] == before == [WanAttnProcessor]*2
    wrapped.free("text_encoder")
    assert own.text_encoder is None
    for use in (lambda: wrapped.embed("a man in a park"), lambda: wrapped.text_encoder):
        with pytest.raises(UserError, match="text_encoder of '' was freed to save memory: load the model again"): use()


def test_an_own_pipeline_without_an_encoder(own):
    own.text_encoder = None
    assert "text_encoder" not in VideoDiT(own, "mine").loaded
    with pytest.raises(UserError, match="freed"): VideoDiT(own, "mine").embed("a man")


def test_another_text_encoder_reads_otherwise(own):
    dit = VideoDiT(own)
    text = dit.embed("a man")
    with torch.no_grad(): own.text_encoder = other = type(own.text_encoder)(own.text_encoder.config).eval()
    assert dit.text_encoder is other and not torch.equal(dit.embed("a man"), text)


def test_a_clip_without_its_batch_axis_is_told(dit):
    with pytest.raises(UserError, match=r"\(B, T, 3, H, W\), and this is \(5, 3, 64, 64\): give one clip as frames\[None\]"): dit.encode(torch.zeros(5, 3, 64, 64))


@pytest.mark.parametrize("vector, says", [(torch.zeros(3), r"\(3,\)"), (torch.zeros(1, 8), r"\(1, 8\)"), ([0.]*8, "list"), (1., "float")])
def test_a_words_vector_that_does_not_fit_is_told(dit, vector, says):
    with pytest.raises(UserError, match=rf"The vector of \[v\] must be a tensor of shape \({dit.text_width},\), and this is {says}: give"):
        dit.sample("a [v] man", tokens={"[v]": vector}, num_frames=5, steps=1)


# damage

def damaged(folder, out, part, spoil):
    shutil.copytree(folder, out)
    file = next((out/part).glob("*.safetensors"))
    spoil(file)
    return out

def cut(file): file.write_bytes(file.read_bytes()[:-1000])
def noise(file): file.write_bytes(b"\xff"*500)

@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("spoil", [cut, noise])
def test_damaged_weights_are_told_when_they_are_read(folder, tmp_path, part, spoil):
    dit = VideoDiT.load(damaged(folder, tmp_path/"x", part, spoil), "cpu")
    for _ in range(2):
        with pytest.raises(UserError, match="x' could not be loaded.*every file of it is complete") as e: getattr(dit, part)
        assert "\n" not in str(e.value)
    assert dit.scheduler and part not in dit.loaded
    with pytest.raises(UserError, match="could not be loaded"): dit.pipe


@pytest.mark.parametrize("gone, says", [("vae", "no vae/"), ("scheduler", "no scheduler/"), ("tokenizer", "no tokenizer/"), ("text_encoder/model.safetensors", "no weights in text_encoder/"),
                                        ("transformer/diffusion_pytorch_model.safetensors", "no weights in transformer/"), ("model_index.json", "could not be loaded"), ("vae/config.json", "could not be loaded")])
def test_what_is_not_there_is_told_by_load(folder, tmp_path, gone, says):
    shutil.copytree(folder, tmp_path/"x")
    path = tmp_path/"x"/gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="could not be loaded") as e: VideoDiT.load(tmp_path/"x", "cpu")
    assert says in str(e.value) or gone == "vae"


# one model for all who name it

def test_a_name_is_loaded_once(folder, shared, monkeypatch):
    monkeypatch.chdir(folder.parent)
    dit = VideoDiT.of("wan")
    assert dit.name == "wan" and dit.lasting_name == str(folder)
    assert dit is VideoDiT.of(folder) is VideoDiT.of(str(folder)) is VideoDiT.of("./wan") is VideoDiT.of("wan/") and not dit.loaded
    assert VideoDiT.of("tiny") is VideoDiT.of("tiny") is not dit and shared.cache_info().misses == 2
    assert VideoDiT.load("tiny") is not VideoDiT.of("tiny")


def test_what_is_a_model(dit, own, shared):
    assert VideoDiT.of(dit) is dit and VideoDiT.of(own) is not VideoDiT.of(own)
    for bad in (None, 5, b"tiny", ["tiny"], own.transformer):
        with pytest.raises(UserError, match="a name, a folder, a hub id or a pipeline"): VideoDiT.of(bad)
    for bad in ("tinny", "no/such/place", ""):
        with pytest.raises(UserError): VideoDiT.of(bad)
    class Other(DiffusionPipeline): pass
    with pytest.raises(UserError, match="holds a Other"): VideoDiT.of(Other())


def test_prompts_are_taken_parsed(dit):
    assert torch.equal(dit.embed([Prompt("a [v] man"), "a man"]), dit.embed(["a man", "a man"]))
    assert dit.sample(Prompt("a man"), steps=1, guidance=1, num_frames=5, height=32, width=32).name == "a man"
