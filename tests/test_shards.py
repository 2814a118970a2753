"A transformer is read one matrix after another, straight into what its memory asks for: it is never there whole in its own precision."
import json, shutil
import pytest, torch
import wan_folder as wan
from sas_nb import hub
from sas_nb.dit import VideoDiT
from sas_nb.fake import Counted
from sas_nb.files import UserError
from sas_nb.hub import Checkpoint
from sas_nb.lowbit import FrozenLinear
from sas_nb.memory import Memory
from safetensors.torch import load_file, save_file

WIDE = dict(num_layers=6, num_attention_heads=4, attention_head_dim=32, ffn_dim=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Its transformer is wider than the rest, and in several files."
    folder = wan.write(tmp_path_factory.mktemp("shards")/"wan")
    shutil.rmtree(folder/"transformer")
    wan.random_transformer(**WIDE).save_pretrained(folder/"transformer", max_shard_size="2MB")
    assert len(list((folder/"transformer").glob("*.safetensors"))) > 2
    return folder

@pytest.fixture
def counted(monkeypatch):
    "Bytes that are alive, but for what is only mapped."
    counted, mapped = Counted(), hub.stored_tensors
    def stored(folder):
        with counted.paused(): tensors = mapped(folder)
        counted.leave_out(*tensors.values())
        return tensors
    monkeypatch.setattr(hub, "stored_tensors", stored)
    return counted

def read(folder, dtype, memory, counted=None, part="transformer"):
    checkpoint = Checkpoint(folder, "cpu", dtype)
    if counted is None: return checkpoint.part(part, memory)
    with counted: return checkpoint.part(part, memory)

def tensors(part): return {k: v for k, v in (*part.named_parameters(), *part.named_buffers())}

def by_the_loader(folder, dtype, memory, monkeypatch, counted=None):
    with monkeypatch.context() as m:
        m.setattr(Checkpoint, "stored", lambda self, part: ({}, {}))
        return read(folder, dtype, memory, counted)

LARGEST = 512*128 # weights of a matrix


@pytest.mark.parametrize("memory", [Memory(weights="int8"), Memory(weights="fp8", swapped=6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_never_there_whole(folder, memory, dtype, counted, monkeypatch):
    part = read(folder, dtype, memory, counted)
    held = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors(part).values()}.values())
    own = sum(p.numel() for p in wan.random_transformer(**WIDE).parameters())*dtype.itemsize
    # one matrix as it is, and what it takes to round it; a block that is moved to where it waits
    room = 5*4*LARGEST + (memory.swapped > 0)*held/6
    assert held <= counted.peak["cpu"] < held+room and held < .7*own
    whole, counted.peak = counted.peak["cpu"], dict(counted.live)
    by_the_loader(folder, dtype, memory, monkeypatch, counted)
    assert counted.peak["cpu"]-held > own > whole-.5*held

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory", [Memory(), Memory(weights="int8"), Memory(weights="fp8", swapped=3), Memory(swapped=6)], ids=str)
def test_it_is_what_the_loader_reads(folder, memory, dtype, monkeypatch):
    ours, theirs = read(folder, dtype, memory), by_the_loader(folder, dtype, memory, monkeypatch)
    assert type(ours) is type(theirs) and dict(ours.config).keys() <= dict(theirs.config).keys() and not ours.training
    a, b = tensors(ours), tensors(theirs)
    assert list(a) == list(b)
    for k in a: assert a[k].dtype == b[k].dtype and torch.equal(*(t[k].view(torch.uint8) if t[k].element_size() == 1 else t[k] for t in (a, b))), k
    assert not any(p.requires_grad for p in ours.parameters())
    waits = [sum(isinstance(m, FrozenLinear) and m.swap is not None for m in part.modules()) for part in (ours, theirs)]
    assert waits[0] == waits[1] == 10*memory.swapped

def test_both_experts(tmp_path, monkeypatch):
    folder = wan.write(tmp_path, "experts")
    for part in ("transformer", "transformer_2"):
        ours = read(folder, torch.float32, Memory(), part=part)
        stored = load_file(folder/part/"diffusion_pytorch_model.safetensors")
        assert all(torch.equal(p, stored[k]) for k, p in ours.named_parameters())

def test_it_outlives_its_files(folder, tmp_path):
    "What was read is no part of a file that may change."
    shutil.copytree(folder, tmp_path/"wan")
    part = read(tmp_path/"wan", torch.float32, Memory())
    before = {k: v.clone() for k, v in tensors(part).items()}
    for f in (tmp_path/"wan"/"transformer").glob("*.safetensors"): f.write_bytes(bytes(f.stat().st_size))
    assert all(torch.equal(v, before[k]) for k, v in tensors(part).items())

def lose(stored): stored.pop("blocks.1.ffn.net.2.weight")
def widen(stored): stored["blocks.1.ffn.net.2.weight"] = torch.zeros(128, 513)

@pytest.mark.parametrize("spoil, says", [(lose, "do not hold blocks.1.ffn.net.2.weight"), (widen, r"blocks.1.ffn.net.2.weight is \(128, 513\) in its files, and not \(128, 512\)")])
def test_files_that_do_not_hold_it(folder, tmp_path, spoil, says):
    shutil.copytree(folder, tmp_path/"wan")
    stored = {}
    for f in (tmp_path/"wan"/"transformer").glob("*.safetensors*"):
        if f.suffix == ".safetensors": stored |= load_file(f)
        f.unlink()
    spoil(stored)
    save_file({k: v.clone() for k, v in stored.items()}, tmp_path/"wan"/"transformer"/"diffusion_pytorch_model.safetensors")
    dit = VideoDiT.load(tmp_path/"wan", "cpu")
    with pytest.raises(UserError, match=says) as e: dit.transformer
    assert "\n" not in str(e.value) and "every file of it is complete" in str(e.value)

def test_files_that_only_the_loader_can_read(folder, tmp_path, monkeypatch):
    "Such as those in another library's few bits, or in PyTorch's own format."
    shutil.copytree(folder, tmp_path/"wan")
    config = tmp_path/"wan"/"transformer"/"config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(quantization_config=dict(quant_method="another"))))
    assert Checkpoint(tmp_path/"wan", "cpu").stored("transformer")[1] == {}
    shutil.copytree(folder, tmp_path/"binary")
    for f in (tmp_path/"binary"/"transformer").glob("*.safetensors*"): f.unlink()
    transformer = wan.random_transformer(**WIDE)
    transformer.save_pretrained(tmp_path/"binary"/"transformer", safe_serialization=False)
    ours = read(tmp_path/"binary", torch.float32, Memory(weights="int8"))
    assert torch.equal(ours.patch_embedding.weight, transformer.patch_embedding.weight) and isinstance(ours.blocks[0].attn1.to_q, FrozenLinear)
