"Metrics against their published formulas, written again here with numpy and loops; their controls; and the errors a person can make."
import itertools, json, sys
import numpy as np
import pytest
import torch

from sas_nb.clip import Clip
from sas_nb.files import UserError
from sas_nb.lab import controls as controls_module, motion as motion_module, published as published_module
from sas_nb.lab.controls import (adherence, control_table, controls, edit_accuracy, edit_controls,
                                 edit_error, flat_words, judge)
from sas_nb.lab.draw import render, truth
from sas_nb.lab.metrics import (boxes_of, embed, mse, pixel_encoder, psnr, similarity, ssim,
                                subject_consistency, subject_crops, temporal_consistency,
                                temporal_flickering)
from sas_nb.lab.motion import (dynamic_degree, flow, motion_amount, motion_fidelity, motion_smoothness,
                               pose_correlation, track, Tracks)
from sas_nb.lab.published import (arcface_encoder, clip_encoder, dino_encoder, diversity,
                                  motion_fidelity_published, prior_collapse, text_alignment)
from sas_nb.lab.specs import edit
from sas_nb.lab.world import heldout_spec
from sas_nb.stats import Interval, paired_bootstrap

pixels = pixel_encoder(4)

@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

def clip(T=5, size=24, seed=0): return torch.rand(T, 3, size, size, generator=torch.Generator().manual_seed(seed))
def cosine(a, b): return float(np.dot(a, b)/np.linalg.norm(a)/np.linalg.norm(b))
def close(a, b, tol=1e-5): assert float(a) == pytest.approx(float(b), abs=tol)

@pytest.fixture(scope="module")
def dance():
    "The input, its edited spec and the exact answer."
    spec = heldout_spec(1)
    return render(spec), edit(spec, scene="snow"), render(edit(spec, scene="snow"))


# the paper's four, and their kin

def test_mse():
    x, y = clip(), clip(seed=1)
    close(mse(x, y), np.mean((x.numpy() - y.numpy())**2))
    mask = torch.rand(5, 24, 24) < .3
    close(mse(x, y, mask), np.mean([np.mean((x[t, :, i, j] - y[t, :, i, j]).numpy()**2) for t, i, j in mask.nonzero()]))
    assert mse(x, y, torch.zeros(5, 24, 24)).isnan()
    assert mse(torch.stack([x, y]), torch.stack([x, x])).tolist() == [0, float(mse(y, x))]
    with pytest.raises(UserError, match="one size"): mse(x, clip(4))

def noisy(T=5, size=24): return (clip(T, size) + .2*torch.randn(T, 3, size, size, generator=torch.Generator().manual_seed(9))).clamp(0, 1)

def test_psnr_is_the_mean_over_frames_in_decibels():
    x, y = clip(), noisy()
    close(psnr(x, y), np.mean([10*np.log10(1/np.mean((a - b)**2)) for a, b in zip(x.numpy(), y.numpy())]), 1e-4)
    assert psnr(x, x).isinf() and psnr(x, (x + 1)/2) < psnr(x, .9*x + .1*(x + 1)/2)
    two = psnr(torch.stack([x, y]), torch.stack([y, x*0]))
    close(two[0], psnr(x, y)); close(two[1], psnr(y, x*0))
    with pytest.raises(UserError, match="one size"): psnr(x, clip(4))

def test_ssim_is_the_published_formula():
    "Written again with scipy's Gaussian filter, cut at the same radius, in doubles."
    from scipy.ndimage import gaussian_filter
    x, y = clip().double().numpy(), noisy().double().numpy()
    def one(a, b):
        g = lambda v: gaussian_filter(v, 1.5, truncate=3.5)[5:-5, 5:-5]
        ma, mb = g(a), g(b)
        va, vb, cov = g(a*a) - ma**2, g(b*b) - mb**2, g(a*b) - ma*mb
        return ((2*ma*mb + .01**2)*(2*cov + .03**2)/((ma**2 + mb**2 + .01**2)*(va + vb + .03**2))).mean()
    close(ssim(clip(), noisy()), np.mean([one(a, b) for f, h in zip(x, y) for a, b in zip(f, h)]))

def test_ssim_properties():
    x, y = clip(), noisy()
    close(ssim(x, x), 1); close(ssim(x, y), ssim(y, x)); assert ssim(x, 1 - x) < 0 < ssim(x, y) < 1
    two = ssim(torch.stack([x, y]), torch.stack([y, y]))
    close(two[0], ssim(x, y)); close(two[1], 1)
    for wrong, match in (((x, clip(4)), "one size"), ((clip(size=10), clip(size=10)), "SSIM")):
        with pytest.raises(UserError, match=match): ssim(*wrong)

def test_ssim_and_psnr_are_torchmetrics():
    tm = pytest.importorskip("torchmetrics.functional.image")
    x, y = clip(), noisy()
    full = tm.structural_similarity_index_measure(x, y, data_range=1., return_full_image=True)[1] # it averages over a reflected border as well; Wang's window stays inside
    close(ssim(x, y), full[..., 5:-5, 5:-5].mean())
    close(psnr(x, y), tm.peak_signal_noise_ratio(x, y, data_range=1., dim=(1, 2, 3)), 1e-4)

def test_similarity_is_the_mean_over_all_pairs():
    x, ref = clip(3), clip(4, 16, seed=1)
    e, r = pixels(x).numpy(), pixels(ref).numpy()
    pairs = np.mean([cosine(a, b) for a in e for b in r])
    close(similarity(x, ref, pixels), pairs); close(prior_collapse(x, ref, pixels), pairs)

def test_frames_without_a_face_are_left_out():
    x, ref = clip(4), clip(3, seed=1)
    def faces(f): return torch.where((f.mean((1, 2, 3)) > x[2].mean())[:, None], pixels(f), torch.nan)
    seen = [t for t in range(4) if x[t].mean() > x[2].mean()]
    assert 0 < len(seen) < 4
    bright = ref*0 + 1 - ref*.1
    close(similarity(x, bright, faces), similarity(x[seen], bright, pixels))
    assert similarity(x*0, bright, faces).isnan()

def test_text_alignment_and_temporal_consistency():
    x = clip()
    words = lambda prompts: torch.tensor([[float(len(p)), 1.] + [.1*i for i in range(46)] for p in prompts])
    e = pixels(x).numpy(); e /= np.linalg.norm(e, axis=1, keepdims=True)
    close(text_alignment(x, "a dancer", pixels, words), cosine(e.mean(0), words(["a dancer"])[0].numpy()))
    close(temporal_consistency(x, pixels), np.mean([cosine(a, b) for a, b in zip(e, e[1:])]))
    two = text_alignment(torch.stack([x, x]), ["a dancer", "no"], pixels, words)
    close(two[0], text_alignment(x, "a dancer", pixels, words)); close(two[1], text_alignment(x, "no", pixels, words))

@pytest.mark.parametrize("metric", [lambda x: temporal_consistency(x, pixels), lambda x: subject_consistency(x, pixels), temporal_flickering, lambda x: mse(x, clip()),
                                    lambda x: similarity(x, clip(), pixels)])
def test_a_batch_is_its_clips(metric):
    x = torch.stack([clip(seed=n) for n in range(3)])
    torch.testing.assert_close(metric(x), torch.stack([metric(c) for c in x]))

def test_a_clip_is_its_frames():
    x = clip()
    for metric in (lambda v: temporal_consistency(v, pixels), temporal_flickering, motion_smoothness): assert metric(Clip(x)) == metric(x)

def test_diversity_is_the_mean_pairwise_distance():
    x = torch.stack([clip(seed=n) for n in range(4)])
    e = [pixels(c).numpy() for c in x]
    close(diversity(x, pixels), np.mean([1 - cosine(a, b) for i, j in itertools.combinations(range(4), 2) for a, b in zip(e[i], e[j])]))
    close(diversity(x[:1].expand(3, -1, -1, -1, -1), pixels), 0)
    with pytest.raises(UserError, match="at least 2"): diversity(x[:1], pixels)

def test_wrong_shapes_are_told():
    for wrong in (torch.rand(3, 8, 8), torch.rand(5, 1, 8, 8), "clip.mp4"):
        with pytest.raises(UserError, match="needs frames"): embed(wrong, pixels)
    with pytest.raises(UserError, match="at least 2"): temporal_consistency(clip(1), pixels)
    with pytest.raises(UserError, match="one vector a frame"): embed(clip(), lambda x: torch.rand(3, 4))


# encoders of real checkpoints

def settings(folder, **more):
    (folder/"preprocessor_config.json").write_text(json.dumps(dict(image_mean=[.4, .5, .6], image_std=[.2, .3, .25], resample=3) | more))

@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    "A tiny random CLIP with a tokenizer of a few words, saved as a checkpoint is."
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    vocab = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "a", "man", "on", "beach", "dances"])}
    t = Tokenizer(models.WordLevel(vocab, unk_token="<pad>")); t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=t, pad_token="<pad>", bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    text = dict(vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=6, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    settings(folder, size=dict(shortest_edge=28), crop_size=dict(height=28, width=28), do_center_crop=True, image_processor_type="CLIPImageProcessor")
    return folder

def test_clip_encoder_is_the_models_own_score(clip_folder):
    from transformers import AutoTokenizer, CLIPModel
    model, words = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    encode, encode_text = clip_encoder(clip_folder, device="cpu", batch=2)
    x, prompts = clip(3, 28), ["a man on a", "a beach dances"]
    ready = (x - torch.tensor([.4, .5, .6])[:, None, None])/torch.tensor([.2, .3, .25])[:, None, None]
    with torch.no_grad(): out = model(pixel_values=ready, **words(prompts, padding=True, return_tensors="pt"))
    want = out.logits_per_image/model.logit_scale.exp()
    for i, j in itertools.product(range(3), range(2)): close(text_alignment(x[i:i+1], prompts[j], encode, encode_text), want[i, j].detach())
    assert encode_text(["a man " * 9]).shape == (1, 12) # too long: cut, not an error

@pytest.mark.parametrize("hw", [(40, 64), (64, 40), (28, 28), (17, 90)])
def test_frames_are_prepared_as_transformers_does(clip_folder, hw):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    x = (torch.rand(2, 3, *[n//4 + 1 for n in hw]).repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :hw[0], :hw[1]]*128 + 64).round()
    want = CLIPImageProcessorPil.from_pretrained(clip_folder)([f.permute(1, 2, 0).byte().numpy() for f in x], return_tensors="pt")["pixel_values"]
    got = published_module._prepare(x/255, json.loads((clip_folder/"preprocessor_config.json").read_text()))
    torch.testing.assert_close(got, want, atol=.02, rtol=0) # Pillow rounds to bytes, and cuts overshoot, in between

def test_dino_encoder_is_the_class_token(tmp_path):
    from transformers import Dinov2Config, Dinov2Model
    model = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)).eval()
    model.save_pretrained(tmp_path); settings(tmp_path, size=28)
    x = clip(3, 28)
    ready = (x - torch.tensor([.4, .5, .6])[:, None, None])/torch.tensor([.2, .3, .25])[:, None, None]
    with torch.no_grad(): want = model(ready).pooler_output
    torch.testing.assert_close(dino_encoder(tmp_path, device="cpu", batch=2)(x), want)
    assert dino_encoder(tmp_path, device="cpu")(clip(2, 50)[..., :30]).shape == (2, 16) # squeezed to a square
    with pytest.raises(UserError, match="Cannot load"): dino_encoder(tmp_path/"missing")

def test_arcface_encoder(tmp_path):
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper
    w = np.random.default_rng(0).normal(size=(3*8*8, 5)).astype(np.float32)
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])], "tiny",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
                              [numpy_helper.from_array(w, "w")])
    path = tmp_path/"tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    x = clip(5, 8)
    np.testing.assert_allclose(arcface_encoder(path, batch=2)(x), (x.flatten(1).numpy()*2 - 1) @ w, atol=1e-4)
    assert arcface_encoder(path)(clip(2, 30)).shape == (2, 5)
    close(similarity(x, x[:1], arcface_encoder(path)), np.mean([cosine((2*a.flatten().numpy() - 1) @ w, (2*x[0].flatten().numpy() - 1) @ w) for a in x]))

@pytest.mark.parametrize("package, use", [("onnxruntime", lambda: arcface_encoder("face.onnx")), ("cv2", lambda: flow(clip(), clip()))])
def test_a_missing_extra_is_told(monkeypatch, package, use):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install .*\[metrics\]"): use()

def test_a_missing_onnx_file_is_told():
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="no ONNX file"): arcface_encoder("nowhere.onnx")


# the subject alone

def test_boxes_and_crops():
    x, mask = torch.zeros(3, 3, 20, 30), torch.zeros(3, 20, 30, dtype=torch.bool)
    mask[0, 4:14, 10:14] = True; mask[2, 0:4, 0:4] = True
    x[0, :, 4:14, 10:14] = 1; x[2, 0, 0:4, 0:4] = 1
    boxes = boxes_of(mask, margin=0)
    assert boxes[0].tolist() == [7, 4, 17, 14] and boxes[2].tolist() == [0, 0, 4, 4] and boxes[1].isnan().all()
    crops = subject_crops(x, mask, size=10)
    assert crops.shape == (2, 3, 10, 10) # the frame without the subject is left out
    inside = subject_crops(x, boxes=torch.tensor([[10., 4, 14, 14]]*3), size=8)[0]
    assert inside.min() > 1 - 1e-5
    assert boxes_of(mask)[0].tolist() == [6, 3, 18, 15]
    assert (crops[0, :, :, 0] - .5).abs().max() < 1e-5 and crops[0, :, 1:-1, 4:6].min() > .9 # all else is grey
    assert subject_crops(x, boxes=torch.tensor([[-5., -5, 5, 5]]*3), size=10).shape == (3, 3, 10, 10)
    with pytest.raises(UserError, match="in no frame"): subject_crops(x, mask & False)
    with pytest.raises(UserError, match="in no frame"): subject_crops(x, boxes=torch.tensor([[40., 2, 50, 9]]*3))
    with pytest.raises(UserError, match="masks= .* or boxes="): subject_crops(x)

def test_crops_do_not_see_the_background(dance):
    before, after, answer = dance
    mask = truth(after).masks[0]
    same = mse(subject_crops(before, mask), subject_crops(answer, mask))
    assert same < .01 < mse(before, answer)


# VBench, its formulas written again

def test_vbench_subject_consistency_and_flicker():
    x = clip(6)
    e = [v.numpy() - .5*np.arange(48)/48 for v in pixels(x)]
    encode = lambda f: torch.from_numpy(np.stack([v.numpy() - .5*np.arange(48)/48 for v in pixels(f)]))
    total = sum((max(0, cosine(e[t-1], e[t])) + max(0, cosine(e[0], e[t])))/2 for t in range(1, 6))
    close(subject_consistency(x, encode), total/5)
    frames = (x*255).numpy()
    close(temporal_flickering(x), (255 - np.mean([np.mean(np.abs(a - b)) for a, b in zip(frames, frames[1:])]))/255)

def vbench_moves(flows, size, count, fps):
    "Dynamic degree of VBench: flows (pairs, H, W, 2) between sampled frames."
    need, hits = round(4*(count/16)), 0
    limit = max(1., 8./fps)*6.*(min(size)/256.)
    for f in flows:
        r = np.sort(np.sqrt(f[..., 0]**2 + f[..., 1]**2).ravel())[::-1]
        hits += r[:int(r.size*.05)].mean() > limit
        if hits >= need: return True
    return False

@pytest.mark.parametrize("fps", [4., 8., 24.])
def test_vbench_dynamic_degree(monkeypatch, fps):
    answers = []
    for seed, scale in itertools.product(range(3), (.05, .2, .3, .5, .8, 2.)):
        T, step = 25, max(1, round(fps/8))
        rng = np.random.default_rng(seed)
        pairs = len(range(0, T, step)) - 1
        flows = rng.normal(size=(pairs, 32, 40, 2)).astype(np.float32)*scale*rng.uniform(0, 1, (pairs, 1, 1, 1)).astype(np.float32)
        def fake(a, b): assert len(a) == len(b) == pairs; return torch.from_numpy(flows)
        monkeypatch.setattr(motion_module, "flow", fake)
        x = torch.rand(T, 3, 32, 40)
        answers.append(dynamic_degree(x, fps))
        assert answers[-1] == vbench_moves(flows, (32, 40), pairs + 1, fps) == dynamic_degree(Clip(x, fps))
    assert len(set(answers)) == 2

@pytest.mark.parametrize("T", [3, 6, 9])
def test_motion_smoothness_formula(monkeypatch, T):
    "With no flow, the interpolation is the average of the neighbours."
    x = clip(T, 20)
    monkeypatch.setattr(motion_module, "flow", lambda a, b: torch.zeros(len(a), 20, 20, 2))
    v = x.numpy()
    close(motion_smoothness(x), 1 - np.mean([np.abs((v[t-1] + v[t+1])/2 - v[t]).mean() for t in range(1, T-1, 2)]))


# flow and tracks


def texture(size=96, seed=0):
    "A smooth random picture, larger than the view."
    noise = torch.rand(1, 3, size//6, size//6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)[0]

def gliding(dx, dy, T=9, size=64):
    "A view that glides over a texture: the picture moves by (-dx, -dy) a frame."
    big = texture()
    return torch.stack([big[:, 16 + dy*t:16 + dy*t + size, 16 + dx*t:16 + dx*t + size] for t in range(T)])

def test_flow_finds_a_known_shift():
    x = gliding(2, -1)
    f = flow(x[:-1], x[1:])[:, 8:-8, 8:-8]
    assert f.shape == (8, 48, 48, 2)
    torch.testing.assert_close(f.flatten(0, 2).median(0).values, torch.tensor([-2., 1.]), atol=.1, rtol=0)
    close(motion_amount(x, 8.).median(), 5**.5/(6*64/256), .25)
    assert motion_amount(x[:1].expand(3, -1, -1, -1)).tolist() == [0, 0]
    with pytest.raises(UserError, match="at least 16"): flow(x[..., :8], x[..., :8])

def test_motion_smoothness_follows_motion():
    x = gliding(2, 1)
    average = 1 - ((x[:-2:2] + x[2::2])/2 - x[1::2]).abs().mean()
    assert motion_smoothness(x) > (1 + average)/2 and motion_smoothness(x[[0, 3, 1, 7, 2, 5, 4, 8, 6]]) < motion_smoothness(x)

def test_tracks_follow_a_known_shift():
    x = gliding(1, 2)
    t = track(x)
    assert t.xy.shape[1:] == (9, 2) and t.visible.shape == t.xy.shape[:2] and t.visible[:, 0].all()
    steps = (t.xy.diff(dim=1)*64)[t.visible[:, -1]]
    assert len(steps) > 50
    torch.testing.assert_close(steps.flatten(0, 1).median(0).values, torch.tensor([-1., -2.]), atol=.1, rtol=0)
    assert not (t.visible[:, 1:] & ~t.visible[:, :-1]).any() # lost is lost
    assert ((t.xy[t.visible] >= 0) & (t.xy[t.visible] <= 1)).all()

def test_tracks_start_in_the_mask_and_on_texture():
    x = gliding(1, 0)
    mask = torch.zeros(64, 64, dtype=torch.bool); mask[10:30, 40:60] = True
    start = track(x, mask).xy[:, 0]*64
    assert len(start) and (start >= torch.tensor([40, 10])).all() and (start < torch.tensor([60, 30])).all()
    flat = torch.full((4, 3, 64, 64), .3)
    assert len(track(flat).xy) == 0
    assert motion_fidelity(x, track(torch.full((9, 3, 64, 64), .3))).isnan() or motion_fidelity(x, track(torch.full((9, 3, 64, 64), .3))) <= 0
    assert motion_fidelity_published(x, torch.full((9, 3, 64, 64), .3)) == 0


# motion fidelity

def wander(n=6, T=17, seed=0, hidden=0.):
    g = torch.Generator().manual_seed(seed)
    return Tracks(torch.randn(n, T, 2, generator=g).cumsum(1)*.01, torch.rand(n, T, generator=g) >= hidden)

def published(a, b):
    "Both ways, averaged; loops."
    v, u = np.diff(a.xy.numpy(), axis=1), np.diff(b.xy.numpy(), axis=1)
    corr = np.array([[np.mean([cosine(p, q) if np.any(p) and np.any(q) else 0 for p, q in zip(x, y)]) for y in u] for x in v])
    return (corr.max(1).mean() + corr.max(0).mean())/2

def agreement(a, b):
    "The repaired score before its correction for chance; loops."
    seen = lambda t: t.visible.numpy()[:, 1:] & t.visible.numpy()[:, :-1]
    some = lambda t: [(v, s) for v, s in zip(np.diff(t.xy.numpy(), axis=1), seen(t)) if s.mean() >= .5]
    def concordance(p, q):
        (v, s), (u, r) = p, q
        both = s & r
        return 2*np.sum(v[both]*u[both])/(np.sum(v[both]**2) + np.sum(u[both]**2)) if both.mean() >= .5 else 0
    def way(a, b):
        energy = [np.sum(v[s]**2) for v, s in a]
        return np.sum([e*max(concordance(p, q) for q in b) for e, p in zip(energy, a)])/np.sum(energy)
    return min(way(some(a), some(b)), way(some(b), some(a)))

def test_published_motion_fidelity_is_the_formula():
    a, b = wander(4), wander(7, seed=1)
    b.xy[2] = b.xy[2, :1] # one point stands still
    close(motion_fidelity_published(a, b), published(a, b)); close(motion_fidelity_published(a, a), 1)
    close(motion_fidelity_published(a, b), motion_fidelity_published(b, a))

@pytest.mark.parametrize("hidden", [0., .15])
def test_repaired_motion_fidelity_is_the_formula(hidden):
    a, b, n = wander(9, hidden=hidden), wander(8, seed=1, hidden=hidden), wander(8, seed=2, hidden=hidden)
    s, s0 = agreement(a, b), agreement(a, n)
    close(motion_fidelity(a, b, null=[n]), (s - s0)/(1 - s0))
    close(motion_fidelity(a, n, null=[n]), 0); close(motion_fidelity(a, a, null=[n]), 1)

def test_repaired_motion_fidelity_is_one_for_itself_and_zero_for_its_null():
    a, g = wander(), torch.Generator().manual_seed(7)
    close(motion_fidelity(a, a), 1)
    order = lambda: torch.randperm(16, generator=g)
    def reordered(i): return Tracks(torch.cat([a.xy[:, :1], a.xy[:, :1] + a.xy.diff(dim=1)[:, i].cumsum(1)], 1), a.visible)
    assert abs(np.mean([float(motion_fidelity(a, reordered(order()))) for _ in range(40)])) < .05

def test_motion_fidelity_does_not_care_where_or_in_which_order_paths_are():
    a, b = wander(), wander(5, seed=1)
    moved = Tracks(b.xy[[3, 1, 0, 2, 4]] + torch.rand(5, 1, 2), b.visible[[3, 1, 0, 2, 4]])
    close(motion_fidelity(a, b), motion_fidelity(a, moved)); close(motion_fidelity_published(a, b), motion_fidelity_published(a, moved))

def test_only_the_repaired_one_sees_how_large_a_movement_is():
    a = wander()
    scores = [float(motion_fidelity(a, Tracks(a.xy*s, a.visible))) for s in (1., .7, .4, .1)]
    assert scores == sorted(scores, reverse=True) and scores[0] - scores[-1] > .5
    close(motion_fidelity_published(a, Tracks(a.xy*.1, a.visible)), 1)

def test_motion_added_or_missing_counts_both_ways():
    a, b = wander(4), wander(4, seed=1)
    both = Tracks(torch.cat([a.xy, b.xy]), torch.cat([a.visible, b.visible]))
    assert motion_fidelity(a, both) < .7 and motion_fidelity(both, a) < .7

def test_a_reference_without_movement_in_time_has_no_fidelity():
    still = Tracks(torch.rand(5, 1, 2).expand(-1, 17, -1), torch.ones(5, 17, dtype=torch.bool))
    glide = Tracks(torch.linspace(0, 1, 17)[None, :, None].expand(5, -1, 2), still.visible)
    unseen = Tracks(wander(5).xy, torch.zeros(5, 17, dtype=torch.bool))
    for ref in (still, glide, unseen): assert motion_fidelity(ref, wander()).isnan()
    assert motion_fidelity(wander(), still) < 0
    with pytest.raises(UserError, match="one length"): motion_fidelity(wander(), wander(T=9))
    with pytest.raises(UserError, match="one length"): motion_fidelity_published(wander(), wander(T=9))

def test_motion_fidelity_on_renders(dance):
    before, after, answer = dance
    wrong = edit_controls(heldout_spec(1), scene="snow")
    right = motion_fidelity(before, answer)
    assert right > .7 and all(motion_fidelity(before, wrong[k]) < right - .3 for k in ("frozen", "shuffled", "wrong_motion", "noise"))


# poses

def poses(T=12, J=5, seed=0): return torch.randn(T, J, 2, generator=torch.Generator().manual_seed(seed)).cumsum(0)

def test_pose_correlation_is_the_best_lag():
    a, b = poses().numpy(), poses(seed=1).numpy()
    def at(lag):
        u, v = (a[lag:], b[:len(b)-lag]) if lag >= 0 else (a[:lag], b[-lag:])
        u, v = (w - w.mean(0) for w in (u, v))
        return (u*v).sum()/np.sqrt((u**2).sum()*(v**2).sum())
    for most in (0, 2, 6): close(pose_correlation(a, b, most), max(at(k) for k in range(-most, most + 1)))

def test_pose_correlation_properties():
    a = poses()
    close(pose_correlation(a, a*3 + torch.rand(5, 2)), 1); close(pose_correlation(a, -a, 0), -1)
    for scale in (1, 60, 1e4): close(pose_correlation(a*scale, a[:1].expand_as(a)*scale + scale), 0) # rounding is no movement
    close(pose_correlation(a[3:], a[:-3], 3), 1); close(pose_correlation(a[:-3], a[3:], 3), 1)
    close(pose_correlation(torch.stack([a, poses(seed=1)]), torch.stack([a, a]))[1], pose_correlation(poses(seed=1), a))
    for wrong in ((a, a[:-1], 2), (a, a, 7), (a, a, -1)):
        with pytest.raises(UserError, match="cannot be compared"): pose_correlation(*wrong)


# edits

def test_edit_error(dance):
    before, after, answer = dance
    assert edit_error(answer, after) == dict(whole=0, subject=0)
    error = edit_error(before, after)
    assert error["whole"] > .01 > error["subject"]
    mask = torch.from_numpy(truth(after).masks.any(0))
    close(error["subject"], mse(before, answer, mask))

def test_seen_words():
    class Two:
        def attributes(self, frames): return dict(scene=(["park", "snow"], None), hat=(["cap", "none"], None))
    assert controls_module.seen_words(Two(), clip()) == [dict(scene="park", hat="cap"), dict(scene="snow", hat="none")]

def test_words_adherence_and_edit_accuracy():
    spec = heldout_spec(2); after = edit(spec, hat="cap", light="night")
    have, want = (flat_words(truth(s).attributes) for s in (spec, after))
    assert want["hat"] == "cap" and want["light"] == "night" and "subjects" not in want
    assert adherence(want, want) == 1 and adherence(have, want) == pytest.approx(1 - 2/len(want))
    score = lambda seen: edit_accuracy(seen, want, ["hat", "light"])
    assert score(want).accurate and score(have) == (False, True) and score(want | dict(scene="moon")) == (True, False)
    assert score(have | dict(hat="cap")) == (False, True) and not score({}).kept
    with pytest.raises(UserError, match="no 'shoes'"): edit_accuracy(have, want, ["shoes"])
    with pytest.raises(UserError, match="No attribute"): adherence(have, {})


# controls and verdicts

@pytest.mark.parametrize("seed", range(4))
def test_controls(seed):
    answer = Clip(clip(4), 8.)
    c = controls(answer, seed, mine=answer)
    assert list(c) == ["exact", "frozen", "shuffled", "reversed", "noise", "mine"] and all(v.shape == answer.shape and v.fps == 8 for v in c.values())
    x = answer.frames
    assert torch.equal(c["frozen"].frames, x[2:3].expand_as(x)) and torch.equal(c["reversed"].frames, x.flip(0))
    order = [next(t for t in range(4) if torch.equal(f, x[t])) for f in c["shuffled"].frames]
    assert sorted(order) == [0, 1, 2, 3] and order not in ([0, 1, 2, 3], [3, 2, 1, 0])
    with pytest.raises(UserError, match="at least 3"): controls(answer[:2])

def test_edit_controls():
    spec = heldout_spec(4)
    c = edit_controls(spec, scene="desert")
    assert torch.equal(c["exact"].frames, render(edit(spec, scene="desert")).frames) and torch.equal(c["copy"].frames, render(spec).frames)
    for a, b in itertools.combinations(c.values(), 2): assert not torch.equal(a.frames, b.frames)

def test_paired_bootstrap():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 5, 20); d = rng.normal(.5, .3, 20)
    found = paired_bootstrap(base + d, base)
    draws = np.sort(d[rng.integers(0, 20, (20000, 20))].mean(1))
    assert found.mean == pytest.approx(d.mean()) and found.n == 20 and found.found
    assert found.low == pytest.approx(draws[500], abs=.02) and found.high == pytest.approx(draws[19500], abs=.02)
    assert found == paired_bootstrap(base + d, base) # seeded
    other = paired_bootstrap(base, base + d)
    assert (other.mean, other.low) == pytest.approx((-found.mean, -found.high), abs=.02)
    assert paired_bootstrap([1., 1, 1, np.nan], [0, 0, 0, 0]) == Interval(1, 1, 1, 3)
    assert str(paired_bootstrap([1, -1, 1, -1], [0]*4)) == "no difference found" and not paired_bootstrap([2., 3, 4], [2., 3, 4]).found
    for wrong, match in ((([1, 2], [1, 2, 3]), "one length"), (([1, 2], [2, 1]), "at least 3"), (([[1, 2, 3]], [[1, 2, 3]]), "one length")):
        with pytest.raises(UserError, match=match): paired_bootstrap(*wrong)

def test_bootstrap_covers():
    rng, hits = np.random.default_rng(1), 0
    for n in range(200):
        i = paired_bootstrap(rng.normal(.3, 1, 25), np.zeros(25), resamples=400, seed=n)
        hits += i.low <= .3 <= i.high
    assert .88 <= hits/200 <= .99

def test_judge_and_its_table():
    exact = np.arange(8.)
    scores = dict(exact=exact, worse=exact - 1 - .1*(exact % 2), same=exact + [.1, -.1]*4, better=exact + 1)
    v = judge(scores, must=["worse", "same", "better"])
    assert v.failed == ("same", "better") and not v.usable and judge(scores, must=["worse"]).usable
    assert judge({k: -x for k, x in scores.items()}, must=["worse"], higher=False).intervals["worse"].mean == pytest.approx(1.05)
    with pytest.raises(UserError, match="'frozen' was not measured"): judge(scores, must=["frozen"])
    lines = control_table({"m": v, "ok": judge(scores, must=["worse"])}).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "**not for claims**" in lines[2] and "**fails:** no difference found" in lines[2] and "(!)" in lines[2]
    assert "| use |" in lines[3] and "fails" not in lines[3]


def test_rounding_is_no_difference():
    found = paired_bootstrap([.1]+[1e-17]*8, [0.]*9)
    assert found.low == 0 and not found.found
