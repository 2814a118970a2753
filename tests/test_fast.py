"""Each thing that is borrowed from torch or diffusers to save time gives the stock answer, and is off where it does not apply."""
import math, threading
from types import SimpleNamespace
import pytest, torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models import attention_dispatch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from sas_nb import fast
from sas_nb.fast import (compiled, in_two_pieces, MatmulAttention, mixed_precision, one_pad, OneDNN, quick_convolutions, trim, whole_text, WholeClip)
from sas_nb.files import UserError

SIZES = dict(num_attention_heads=2, attention_head_dim=12, ffn_dim=16, num_layers=2, text_dim=8, freq_dim=8)
CPU = torch.device("cpu")


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    model = WanTransformer3DModel(**SIZES).eval().requires_grad_(False)
    for b in model.blocks: b.attn2.to_out[0].weight.mul_(9)
    return model


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 16, 2, 4, 4, generator=g), torch.randn(2, 4, 8, generator=g)
    text[1, 2:] = 0
    return x, torch.tensor([300., 700.]), F.pad(text, (0, 0, 0, 508))


def run(model, inputs, text=None):
    x, t, whole = inputs
    return model(x, t, whole if text is None else text, return_dict=False)[0]


def processors(model): return [type(a.processor) for b in model.blocks for a in (b.attn1, b.attn2)]


# one token for all padding

def test_one_pad_is_exact(transformer, inputs):
    stock, short = run(transformer, inputs), trim(inputs[2])
    assert short.shape[1] == 5 and not torch.allclose(run(transformer, inputs, short), stock, atol=1e-3), "or the test has nothing to see"
    assert one_pad(transformer)
    torch.testing.assert_close(run(transformer, inputs, short), stock, atol=1e-5, rtol=1e-5)
    assert torch.equal(run(transformer, inputs), stock), "with all its padding it is stock"


REFUSING = ["flash", "_flash_3", "sage", "_native_flash", "flash_varlen"]

@pytest.mark.parametrize("backend", REFUSING)
@pytest.mark.parametrize("way", ["model", "context"])
def test_attention_that_refuses_a_mask_gets_all_the_padding(transformer, inputs, monkeypatch, backend, way):
    "The backend is not installed here, so its place is taken by stock attention that refuses a mask as it does."
    stock, name, masks = run(transformer, inputs), attention_dispatch.AttentionBackendName(backend), []
    def refuses(query, key, value, attn_mask=None, **_):
        masks.append((attn_mask, key.shape[1]))
        return F.scaled_dot_product_attention(*(v.transpose(1, 2) for v in (query, key, value))).transpose(1, 2)
    registry = attention_dispatch._AttentionBackendRegistry
    monkeypatch.setitem(registry._backends, name, refuses)
    monkeypatch.setitem(registry._supported_arg_names, name, {"query", "key", "value", "attn_mask"})
    one_pad(transformer)
    if way == "model":
        for b in transformer.blocks:
            for a in (b.attn1, b.attn2): a.processor._attention_backend = name # as `set_attention_backend` does
    else: monkeypatch.setattr(registry, "_active_backend", name)
    torch.testing.assert_close(run(transformer, inputs, trim(inputs[2])), stock, atol=1e-5, rtol=1e-5)
    assert masks and all(m is None for m, _ in masks) and {n for _, n in masks} == {8, 512}


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_that_takes_a_mask_is_given_one_token(transformer, inputs, backend):
    stock = run(transformer, inputs)
    one_pad(transformer)
    transformer.set_attention_backend(backend)
    torch.testing.assert_close(run(transformer, inputs, trim(inputs[2])), stock, atol=1e-5, rtol=1e-5)


def test_processors_of_somebody_else_stay(transformer):
    class Own(WanAttnProcessor): pass
    transformer.blocks[1].attn2.set_processor(Own())
    before = processors(transformer)
    assert not one_pad(transformer) and processors(transformer) == before
    assert not one_pad(SimpleNamespace()) and not one_pad(nn.Linear(1, 1))


@pytest.mark.parametrize("put_on", [True, False])
def test_whole_text(transformer, inputs, put_on):
    stock, short = run(transformer, inputs), trim(inputs[2])
    if put_on: one_pad(transformer)
    text = whole_text(transformer, short)
    assert text.shape[1] == (5 if put_on else 512)
    torch.testing.assert_close(run(transformer, inputs, text), stock, atol=1e-5, rtol=1e-5)
    assert whole_text(transformer, F.pad(short, (0, 0, 0, 600))).shape[1] == 605, "more than it should have is left alone"


# attention as plain products

def matmul(model, head=12):
    for b in model.blocks:
        for a in (b.attn1, b.attn2): a.set_processor(MatmulAttention(head))
    return model

def test_products_are_stock_attention(transformer, inputs):
    stock = run(transformer, inputs)
    matmul(transformer)
    for text in (inputs[2], trim(inputs[2])): torch.testing.assert_close(run(transformer, inputs, text), stock, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", ["fused", "dropout", "another head", "mask"])
def test_products_leave_to_stock_what_they_do_not_know(transformer, inputs, change):
    x = torch.randn(1, 6, 24)
    attn, mask = transformer.blocks[0].attn1, torch.zeros(1, 1, 6, 6) if change == "mask" else None
    if mask is not None: mask[..., 3:] = -math.inf
    if change == "fused": attn.fuse_projections()
    if change == "dropout": attn.to_out[1].p = .5; attn.train()
    torch.manual_seed(2)
    stock = WanAttnProcessor()(attn, x, attention_mask=mask)
    torch.manual_seed(2)
    assert torch.equal(MatmulAttention(8 if change == "another head" else 12)(attn, x, attention_mask=mask), stock)


# convolutions

CALLS = [((), {}), ((None, 2, 1), {}), ((), dict(padding=1)), ((), dict(padding="same")), ((), dict(padding="valid", stride=2)), ((), dict(stride=[2], dilation=2)), ((), dict(groups=2)),
         ((None,), dict(padding=(1,)))]

@pytest.mark.parametrize("n, f", [(2, torch.conv2d), (3, F.conv3d)])
@pytest.mark.parametrize("args, kwargs", CALLS)
def test_convolutions_however_they_are_called(n, f, args, kwargs):
    x, groups = torch.randn(1, 4, *[7]*n), kwargs.get("groups", 1)
    weight = nn.Parameter(torch.randn(6, 4//groups, *[3]*n))
    stock = f(x, weight, *args, **kwargs)
    with OneDNN():
        torch.testing.assert_close(f(x, weight, *args, **kwargs), stock, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(f(input=x, weight=weight, **dict(zip(("bias", "stride", "padding"), args)), **kwargs), stock, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [lambda x: x.double(), lambda x: x.bfloat16(), lambda x: x[0], lambda x: x[:0], lambda x: x.to("meta"), lambda x: x.as_subclass(Own)],
                         ids=["double", "bf16", "no batch", "empty", "meta", "subclass"])
def test_convolutions_that_are_left_to_torch(make, monkeypatch):
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *_: pytest.fail("not for oneDNN"))
    x = make(torch.randn(1, 4, 7, 7))
    weight = torch.randn(6, 4, 3, 3).to(x.device, x.dtype)
    with OneDNN(): assert torch.conv2d(x, weight).shape[-1] == 5
    with OneDNN(), pytest.raises((TypeError, RuntimeError)): torch.conv2d(x)

class Own(torch.Tensor): pass


def test_gradients_and_layers_with_other_padding():
    torch.manual_seed(0)
    for layer in (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv3d(3, 4, 3, padding="same")):
        x = torch.randn(1, 3, *[6]*(layer.weight.ndim-2))
        layer(x).square().sum().backward()
        stock, layer.weight.grad = layer.weight.grad, None
        with quick_convolutions(CPU): layer(x).square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, stock, atol=1e-4, rtol=1e-4)


def test_it_holds_for_one_thread(monkeypatch):
    seen = []
    with quick_convolutions(CPU):
        thread = threading.Thread(target=lambda: seen.append(len(_get_current_function_mode_stack())))
        thread.start(); thread.join()
        assert seen == [0] and len(_get_current_function_mode_stack()) == 1
    monkeypatch.delattr(torch, "mkldnn_convolution")
    for device in (CPU, torch.device("meta")):
        with quick_convolutions(device): assert not _get_current_function_mode_stack()


# the autoencoder

KINDS = dict(two=dict(), four=dict(dim_mult=[1, 2, 2], temperal_downsample=[True, True], scale_factor_temporal=4, scale_factor_spatial=4), patches=dict(in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=4),
             residual=dict(is_residual=True, in_channels=12, out_channels=12, patch_size=2, dim_mult=[1, 2, 2], temperal_downsample=[True, True], scale_factor_temporal=4, scale_factor_spatial=8))

@pytest.fixture(params=KINDS)
def vae(request):
    torch.manual_seed(0)
    config = dict(base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, attn_scales=[], temperal_downsample=[True], scale_factor_temporal=2, scale_factor_spatial=2)
    return AutoencoderKLWan(**config | KINDS[request.param]).eval().requires_grad_(False)

@pytest.mark.parametrize("T", [1, 5, 9])
def test_whole_clips_and_two_pieces_are_stock(vae, T):
    x = torch.rand(2, 3, T, 16, 16)*2-1
    z = vae.encode(x).latent_dist.mode()
    y = vae.decode(z).sample
    forward = WanResample.forward
    whole = WholeClip(vae)
    torch.testing.assert_close(whole.encode(x), z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.decode(z).clamp(-1, 1), y, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(in_two_pieces(vae, z), y, atol=1e-5, rtol=1e-4)
    assert WanResample.forward is forward and not [m for m in vae.modules() if "forward" in vars(m) or type(m) is fast._WholeResample]
    assert torch.equal(vae.decode(z).sample, y), "its own passes are what they were"


def test_whole_clips_share_the_weights(vae):
    whole, x = WholeClip(vae), torch.rand(1, 3, 5, 16, 16)
    with torch.no_grad():
        for p in vae.parameters(): p.mul_(1.1)
    torch.testing.assert_close(whole.encode(x), vae.encode(x).latent_dist.mode(), atol=1e-5, rtol=1e-4)
    vae.double()
    torch.testing.assert_close(whole.encode(x.double()), vae.encode(x.double()).latent_dist.mode())
    vae.requires_grad_(True)
    whole.decode(whole.encode(x.double())).sum().backward()
    assert vae.decoder.conv_in.weight.grad is not None


@pytest.mark.parametrize("change", ["another class", "another loop", "no unpatchify", "tiled", "sliced"])
def test_an_autoencoder_of_another_kind_passes_as_it_does(vae, monkeypatch, change):
    x = torch.rand(2, 3, 5, 16, 16)*2-1
    z = vae.encode(x).latent_dist.mode()
    y, asked, decode = vae.decode(z).sample, [], AutoencoderKLWan.decode
    monkeypatch.setattr(AutoencoderKLWan, "decode", lambda self, *a, **k: asked.append(1) or decode(self, *a, **k))
    if change == "another class": vae.__class__ = type("Other", (AutoencoderKLWan,), {})
    if change == "another loop":
        forward = type(vae.decoder).forward
        monkeypatch.setattr(type(vae.decoder), "forward", lambda self, *a, **k: forward(self, *a, **k))
    if change == "no unpatchify": monkeypatch.setattr(fast, "wan_vae", SimpleNamespace(AutoencoderKLWan=AutoencoderKLWan))
    if change == "tiled": vae.enable_tiling()
    if change == "sliced": vae.enable_slicing()
    if change in ("tiled", "sliced"): y = decode(vae, z).sample # rounded otherwise
    assert torch.equal(in_two_pieces(vae, z), y) and asked
    if change not in ("tiled", "sliced"):
        whole = WholeClip(vae)
        assert torch.equal(whole.encode(x), z) and torch.equal(whole.decode(z), y)


# precision and compiling

@pytest.mark.parametrize("has, on", [(None, False), (lambda: False, False), (lambda: True, True)])
def test_bf16_where_the_processor_has_it(monkeypatch, has, on):
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**{"_is_mkldnn_bf16_supported": has} if has else {}))
    layer = nn.Linear(2, 2)
    with mixed_precision("cpu"): assert (layer(torch.ones(1, 2)).dtype == torch.bfloat16) == on


def test_all_experts_are_compiled(monkeypatch):
    models = dict(transformer=nn.Linear(2, 2), transformer_2=nn.Linear(2, 2))
    monkeypatch.setattr(torch, "compile", lambda f, **_: lambda *a: 0)
    with compiled(SimpleNamespace(transformers=models)):
        assert [m(torch.ones(1, 2)) for m in models.values()] == [0, 0]
    assert not any("forward" in vars(m) for m in models.values())

def test_what_was_put_on_forward_comes_back(monkeypatch):
    model = nn.Linear(2, 2)
    dit, stock = SimpleNamespace(transformers=dict(transformer=model)), model(torch.ones(1, 2))
    monkeypatch.setattr(torch, "compile", lambda f, **_: lambda *a: f(*a)+1)
    with compiled(dit): torch.testing.assert_close(model(torch.ones(1, 2)), stock+1)
    assert "forward" not in vars(model)
    own = model.forward = lambda x: x*0
    with pytest.raises(KeyError), compiled(dit): raise KeyError
    assert model.forward is own
    class Failed(Exception): pass
    monkeypatch.setattr(fast, "_CANNOT_COMPILE", Failed)
    with pytest.raises(UserError, match="could not be compiled .no such compiler.*compile to False"), compiled(dit): raise Failed("no such compiler\nmore")
