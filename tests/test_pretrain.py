"Pre-training: the whole-clip passes equal the stock ones, a run goes on where it stopped, and what is shipped loads anywhere."
import copy, json
import numpy as np, pytest, torch
from diffusers import WanPipeline
from torch.nn import functional as F
from sas_nb.lab import draw as world
from sas_nb.cache import data_path
from sas_nb.dit import VideoDiT
from sas_nb.fast import channels_last, in_two_pieces
from sas_nb.files import UserError
from sas_nb.lab.autoencoder import (autoencoder_report, batch_loss, busy_crops, Clips, decibels, head_and_hands, interest, reconstruction_loss, reconstruction_psnr,
                                    train_autoencoder)
from sas_nb.lab.draw import render_array
from sas_nb.lab.optim import Clock, load_state, Muon, optimizers, orthogonalise, save_state, set_rates
from sas_nb.lab.pretrain import captions, Latents, train_dit
from sas_nb.lab.specs import vocabulary
from sas_nb.lab.tiny import (autoencoder_passes, decode, encode, FPS, latent_shape, load_autoencoder,
                             make_tokenizer, TEMPORAL_2, TEST_SEED, text_of, tiny_autoencoder, tiny_pipeline,
                             to_signed, training_spec, use_matmul_attention, wider, with_latents)
from sas_nb.lab.world import random_spec


@pytest.fixture(scope="module")
def vae(): torch.manual_seed(0); return tiny_autoencoder().eval().requires_grad_(False)

@pytest.mark.parametrize("T", [1, 5, 17])
@pytest.mark.parametrize("changes", [{}, TEMPORAL_2, dict(TEMPORAL_2, z_dim=24, decoder_base_dim=24)], ids=["factor 4", "factor 2", "factor 2, 24 channels"])
def test_whole_clips_pass_as_stock_code_passes_them_in_pieces(changes, T):
    vae = tiny_autoencoder(**changes).eval().requires_grad_(False)
    x = torch.rand(2, 3, T, 32, 32)*2-1
    z = encode(vae, x)
    assert z.shape[1:] == latent_shape(vae, T, 32)
    torch.testing.assert_close(z, vae.encode(x).latent_dist.mode(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(decode(vae, z).clamp(-1, 1), vae.decode(z).sample, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(in_two_pieces(vae, z).clamp(-1, 1), vae.decode(z).sample, atol=1e-4, rtol=1e-3)

SPATIAL_4 = dict(dim_mult=[1, 2], temperal_downsample=[True], scale_factor_spatial=4)

@pytest.mark.parametrize("channels, frames, changes, across", [(16, 17, {}, 4), (24, 9, {}, 4), (48, 5, {}, 8), (8, 5, SPATIAL_4, 4)])
def test_a_model_of_temporal_factor_2_goes_all_the_way(channels, frames, changes, across):
    torch.manual_seed(0)
    vae = tiny_autoencoder(**{**TEMPORAL_2, **changes}, z_dim=channels, latents_mean=[0.]*channels, latents_std=[1.]*channels)
    dit = VideoDiT(tiny_pipeline(vae))
    z = dit.encode(torch.rand(1, frames, 3, 64, 64))
    assert z.shape == dit.noise([0], frames, 64, 64).shape == (1, *latent_shape(vae, frames)) and z.shape[2] == (frames+1)//2
    assert dit.decode(z).shape == (1, frames, 3, 64, 64)
    assert dit.sample("a man in a park", steps=1, negative="", num_frames=frames, height=64, width=64).shape == (frames, 3, 64, 64)
    assert dit.transformer.patch_embedding(z.float()).shape[2:] == ((frames+1)//2, 4, across), "a token is 16 pixels high"
    with pytest.raises(UserError, match=r"7 frames .* must be 4n\+1"): dit.encode(torch.rand(1, 7, 3, 64, 64)) # stock code would lose two of them

def test_an_autoencoder_comes_from_a_pipeline_or_from_a_folder_of_its_own(tmp_path):
    vae = tiny_autoencoder(**TEMPORAL_2)
    vae.save_pretrained(tmp_path/"alone")
    tiny_pipeline(vae).save_pretrained(tmp_path/"pipe")
    for folder in ("alone", "pipe"):
        again = load_autoencoder(tmp_path/folder)
        assert latent_shape(again) == (16, 9, 8, 8)
        assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters()))

def test_decibels_where_one_asks_for_them():
    x = torch.zeros(2, 3, 2, 8, 8)
    y, left = x.clone(), torch.zeros(2, 1, 2, 8, 8, dtype=torch.bool)
    y[0, ..., :4] = .2
    left[0, ..., :4] = True
    assert decibels(x, y)[0] == pytest.approx(20+3.01, abs=.01) and decibels(x, y, left)[0] == pytest.approx(20, abs=.01)
    assert decibels(x, y, left)[1].isnan(), "no such pixels, no figure"

def test_heads_and_hands_are_where_the_joints_say_and_only_hands_that_move():
    still = world.Spec((world.Person(strength=0.),))
    waves = world.Spec((world.Person(motion="waving", gait=world.NAMED["waving"]),))
    for spec in (still, waves):
        heads, hands = head_and_hands(spec)
        (x, y), J = world.truth(spec, fps=FPS).joints[0][3, 0], world.truth(spec, fps=FPS).joints[0]
        assert heads.shape == (17, 64, 64) and heads[3, int(y), int(x)] and not heads[:, 50:].any()
        assert hands.any() == (spec is waves)
    right = J[:, world.JOINTS.index("hand_r")]
    quick = 1+np.linalg.norm(np.diff(right, axis=0), axis=-1).argmax()
    (x, y), left = right[quick], J[quick, world.JOINTS.index("hand_l")]
    assert hands[quick, int(y), int(x)] and not hands[quick, int(left[1]), int(left[0])] and hands[quick].sum() <= 64
    things = head_and_hands(world.Spec((world.Thing(),)))
    assert not things[0].any() and not things[1].any()

def test_a_loss_with_focus_minds_an_error_there_more():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 5, 64, 64)*2-1
    focus = torch.zeros(1, 1, 5, 64, 64); focus[..., :32, :32] = 8
    def worse(rows): # a round trip that is wrong in the upper or lower half
        def both(v):
            y = v.clone(); y[..., rows, :] += .3
            return v[:, :1]*0, y
        return both
    def loss(rows, focus): torch.manual_seed(0); return batch_loss(worse(rows), x, focus)
    up, down = slice(0, 16), slice(48, 64)
    assert loss(up, focus)/loss(down, focus) > 1.3*loss(up, None)/loss(down, None)

def test_the_report_of_an_autoencoder_measures_and_shows(vae):
    report = autoencoder_report(vae, n=4)
    clips, frames = reconstruction_psnr(vae, 4)
    assert report["clips"] == pytest.approx(clips, abs=.01) and report["frames"] == pytest.approx(frames, abs=.01)
    assert all(5 < report[k] < 40 for k in ("heads", "hands")) and report.picture.width == 2*5*64*3

def test_channels_last_changes_no_number(vae):
    x = torch.rand(1, 3, 5, 32, 32)
    before = encode(vae, x)
    torch.testing.assert_close(encode(channels_last(vae), x), before, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize("dims", [dict(decoder=16), dict(decoder=24), dict(encoder=40), dict(encoder=24, decoder=32)])
def test_a_wider_autoencoder_answers_as_before(vae, dims):
    z, x = torch.randn(2, 16, 5, 4, 4), torch.rand(2, 3, 9, 32, 32)*2-1
    wide, count = wider(vae, **dims), lambda part: sum(p.numel() for p in part.parameters())
    assert (wide.config.base_dim, wide.config.decoder_base_dim) == (dims.get("encoder", 16), dims.get("decoder", 16))
    for part in ("encoder", "decoder"): assert (count(getattr(wide, part)) > count(getattr(vae, part))) == (dims.get(part, 16) > 16)
    assert (decode(wide, z)-decode(vae, z)).std() < .01*decode(vae, z).std()
    assert (encode(wide, x)-encode(vae, x)).std() < .01*encode(vae, x).std()
    for part in {"encoder", "decoder"}-dims.keys(): # what is not widened is bit for bit the same
        for mine, was in zip(getattr(wide, part).parameters(), getattr(vae, part).parameters()): assert torch.equal(mine, was)

@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_autoencoder_is_not_made_narrower(vae, part):
    with pytest.raises(UserError, match=f"The {part} has 16 channels, and 8 are fewer"): wider(vae, **{part: 8})

@torch.no_grad()
@pytest.mark.parametrize("channels", (17, 24, 40))
def test_an_autoencoder_with_more_latents_answers_as_before_and_can_learn_to_use_them(vae, channels):
    x = torch.rand(1, 3, 5, 32, 32)*2-1
    deep = with_latents(vae, channels)
    z, more = encode(vae, x), encode(deep, x)
    assert latent_shape(deep)[0] == channels == len(deep.config.latents_mean) and torch.allclose(more[:, :16], z, atol=1e-5)
    assert torch.allclose(decode(deep, more), decode(vae, z), atol=1e-5) and more[:, 16:].std((0, 2, 3, 4)).min() > 0
    assert deep.encode(x).latent_dist.logvar.max() < -8
    with torch.enable_grad():
        decode(deep, encode(deep, x)).square().mean().backward()
        assert deep.decoder.conv_in.weight.grad[:, 16:].abs().amax((0, 2, 3, 4)).min() > 0, "what is new is noticed"
    assert torch.equal(with_latents(vae, 16).encoder.conv_in.weight, vae.encoder.conv_in.weight)
    with pytest.raises(UserError, match="16 channels, and 8 are fewer"): with_latents(vae, 8)

@pytest.mark.slow
def test_compiled_passes_learn_what_plain_ones_learn(vae):
    x = torch.rand(1, 3, 5, 32, 32)*2-1
    losses = []
    for fast in (False, True):
        torch.manual_seed(0)
        losses.append(reconstruction_loss(autoencoder_passes(copy.deepcopy(vae).requires_grad_(True), fast), x, interest(x), interest(x).mean()).item())
    assert losses[0] == pytest.approx(losses[1], rel=.02)

@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 5, 8, 8), (2, 3, 4, 6)])
def test_attention_as_products_gives_stock_answers(shape):
    torch.manual_seed(0)
    pipe = WanPipeline.from_pretrained(data_path("tiny"))
    x, text = torch.randn(shape[0], pipe.transformer.config.in_channels, *shape[1:]), text_of(pipe, ["a man in a park"]*shape[0], 30).detach()
    mine = use_matmul_attention(copy.deepcopy(pipe.transformer), compiled=False)
    t = torch.linspace(100, 900, shape[0])
    whole = F.pad(text, (0, 0, 0, 512-text.shape[1]))
    with torch.no_grad(): torch.testing.assert_close(mine(x, t, text, return_dict=False)[0], pipe.transformer(x, t, whole, return_dict=False)[0], atol=1e-4, rtol=1e-3)

def test_a_frozen_encoder_stays_while_the_decoder_goes_on(tmp_path):
    narrow = train_autoencoder(tmp_path, minutes=.02, batch=2, workers=0, device="cpu")
    wide = train_autoencoder(tmp_path, minutes=.02, batch=2, workers=0, device="cpu", frozen_encoder=True, decoder_dim=24)
    about = load_state(tmp_path/"decoder.safetensors", {}, {})
    again = train_autoencoder(tmp_path, minutes=about["minutes"]+.02, batch=2, workers=0, device="cpu", frozen_encoder=True, decoder_dim=24)
    assert load_state(tmp_path/"decoder.safetensors", {}, {})["step"] > about["step"]
    for a, b, c in zip(narrow.encoder.parameters(), wide.encoder.parameters(), again.encoder.parameters()): assert torch.equal(a, b) and torch.equal(b, c)
    assert not torch.equal(wide.decoder.conv_out.weight, again.decoder.conv_out.weight)

def test_newton_schulz_brings_singular_values_near_one():
    for shape in ((3, 8, 40), (2, 40, 8), (1, 16, 16)):
        s = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert s.min() > .4 and s.max() < 1.4

def test_muon_learns_a_matrix():
    target, w = torch.randn(12, 20), torch.nn.Parameter(torch.zeros(12, 20))
    opt = Muon([w], lr=.1, weight_decay=0.)
    losses = []
    for _ in range(80):
        loss = (w-target).pow(2).mean(); loss.backward(); opt.step(); opt.zero_grad(); losses.append(loss.item())
    assert losses[-1] < .1*losses[0]

@pytest.mark.parametrize("first, then", [(Muon, torch.optim.Muon), (torch.optim.Muon, Muon)])
def test_a_training_begun_with_one_muon_goes_on_with_the_other(tmp_path, first, then):
    torch.manual_seed(0)
    grads, w = torch.randn(3, 12, 20), torch.nn.Parameter(torch.zeros(12, 20))
    def step(opt, w, grad): w.grad = grad; opt.step()
    opt = first([w], lr=.1, weight_decay=0.)
    for g in grads[:2]: step(opt, w, g)
    save_state(tmp_path/"s.safetensors", {}, dict(muon=opt), {})
    other = torch.nn.Parameter(w.detach().clone())
    again = then([other], lr=.1, weight_decay=0.)
    load_state(tmp_path/"s.safetensors", {}, dict(muon=again))
    step(opt, w, grads[2]); step(again, other, grads[2])
    assert torch.allclose(w, other, atol=.01) and (other-w).norm() < .02*w.norm()

def test_the_clock_warms_up_holds_and_falls():
    c = Clock(10, spent=1, warmup=10)
    assert c.rate(0) == pytest.approx(.1, rel=.01) and c.rate(100) == 1
    assert Clock(10, spent=9).rate(1000) == pytest.approx(.1/.75, rel=.01) and Clock(10, spent=11).rate(1000) == 0

def test_training_never_sees_test_seeds_twice_or_out_of_turn():
    first = [s for s, _ in zip((seed for seed, _ in Clips(7)), range(4))]
    assert first == sorted(set(first)) and all(7 <= s < TEST_SEED and training_spec(s) for s in first)

def test_crops_lie_on_the_latent_grid_where_things_move():
    x = torch.zeros(1, 3, 5, 64, 64); x[..., 40:56, 40:56] = torch.rand(5, 1, 1)
    crops, c = busy_crops(x, interest(x), each=6)
    assert crops.shape == (6, 3, 5, 32, 32) and c.shape == (6, 1, 5, 32, 32)
    assert (crops.flatten(1).abs().sum(1) > 0).all()

def test_the_tokenizer_knows_every_word_and_the_placeholders():
    t = make_tokenizer()
    ids = t(" ".join(w for w in vocabulary() if w not in ".,")).input_ids
    assert t.unk_token_id not in ids and t.unk_token_id in t("cowboy").input_ids
    assert t("A MAN").input_ids == t("a man").input_ids

def test_a_full_store_forgets_the_oldest(vae):
    store, rng = Latents(vae, make_tokenizer(), seed=100, most=24, batch=8), np.random.default_rng(0)
    for _ in range(3): store.add(rng)
    first = store.seeds[0].item()
    assert len(store) == store.made == 24
    store.add(rng)
    assert len(store) == 24 and store.made == 32 and first not in store.seeds and first not in store.image_seeds

def test_a_store_keeps_latents_beside_their_seeds_and_captions(vae):
    tokenizer = make_tokenizer()
    store, rng = Latents(vae, tokenizer, seed=100, most=24, batch=8), np.random.default_rng(0)
    for _ in range(4): store.add(rng)
    assert len(store.images) == 4*len(store.clips) and torch.equal(store.image_seeds, store.seeds.repeat_interleave(4))
    for k, n in ((0, 0), (23, 95)): # a clip, and a frame, by their places
        whole, frames = (to_signed(torch.from_numpy(render_array(s, fps=FPS)).permute(3, 0, 1, 2)[None]) for s in (random_spec(store.seeds[k].item()), random_spec(store.image_seeds[n].item())))
        with torch.no_grad(): clip, images = encode(vae, whole)[0], encode(vae, frames[0].transpose(0, 1)[:, :, None])
        assert (store.clips[k]-clip).abs().max() < .05*clip.abs().max()
        assert (store.images[n]-images).abs().amax((1, 2, 3, 4)).min() < .05*images.abs().max()
        assert torch.equal(store.words[k], captions(tokenizer, random_spec(store.seeds[k].item()), store.seeds[k].item())[0])

def test_a_drawn_batch_has_each_sample_beside_a_caption_of_its_own_and_some_without(vae):
    store = Latents(vae, make_tokenizer(), seed=100, most=24, batch=8)
    for _ in range(3): store.add(np.random.default_rng(0))
    store.clips[:] = torch.arange(24).view(-1, 1, 1, 1, 1); store.images[:] = torch.arange(24).repeat_interleave(4).view(-1, 1, 1, 1, 1)
    clips, images, ids = store.draw(300, 200, torch.Generator().manual_seed(0))
    assert clips.shape == (300, 16, 5, 8, 8) and images.shape == (200, 16, 1, 8, 8) and ids.shape == (500, store.words.shape[-1])
    silent = (ids == store.nothing).all(1)
    assert .05 < silent.float().mean() < .16
    for z, row, words in [*zip(clips, ids[:300], [store.words]*300), *zip(images, ids[300:], [store.image_words[::4]]*200)]:
        assert (row == store.nothing[0]).all() or (words[int(z.flatten()[0])] == row).all(1).any()

def test_a_fused_adam_counts_its_steps_where_its_weights_are(tmp_path):
    "On a card that is not there: `meta` stands for it."
    here, there = (torch.nn.Parameter(torch.ones(3, 2, device=d)) for d in ("cpu", "meta"))
    before = torch.optim.AdamW([here])
    here.sum().backward(); before.step()
    save_state(tmp_path/"s.safetensors", {}, dict(adam=before), {})
    for fused, device in ((True, "meta"), (False, "cpu")):
        after = torch.optim.AdamW([there], fused=fused)
        load_state(tmp_path/"s.safetensors", {}, dict(adam=after))
        assert {k: v.device.type for k, v in after.state[there].items()} == dict(step=device, exp_avg="meta", exp_avg_sq="meta")

def test_optimizer_state_survives_a_file(tmp_path):
    def made(): torch.manual_seed(0); net = torch.nn.Linear(4, 3); return net, optimizers(net.named_parameters(), .1, .01, lambda n, p: p.ndim == 2)
    def step(net, opts):
        net(torch.ones(2, 4)).pow(2).sum().backward()
        for o in opts.values(): o.step(); o.zero_grad()
    net, opts = made(); step(net, opts); save_state(tmp_path/"s.safetensors", dict(net=net), opts, dict(step=1)); step(net, opts)
    again, opts2 = made(); assert load_state(tmp_path/"s.safetensors", dict(net=again), opts2) == dict(step=1); step(again, opts2)
    for a, b in zip(net.parameters(), again.parameters()): assert torch.equal(a, b)
    set_rates(opts2, (1., 2.), .5)
    assert [o.param_groups[0]["lr"] for o in opts2.values()] == [.5, 1.]

def test_a_few_seconds_of_everything_and_on_from_there(tmp_path):
    vae = train_autoencoder(tmp_path, minutes=.02, batch=2, workers=0, device="cpu")
    last = lambda: json.loads((tmp_path/"autoencoder.jsonl").read_text().splitlines()[-1])
    first = last()
    spent = load_state(tmp_path/"autoencoder.safetensors", {}, {})["minutes"]
    train_autoencoder(tmp_path, minutes=spent+.02, batch=2, workers=0, device="cpu")
    assert last()["step"] > first["step"]
    train_dit(tmp_path, vae, minutes=.03, clips=2, images=2, first=16, device="cpu")
    pipe = WanPipeline.from_pretrained(tmp_path/"pipeline")
    assert pipe.vae.config.latents_std and all(s > 0 for s in pipe.vae.config.latents_std)
    clip = VideoDiT.load(tmp_path/"pipeline").sample("a man in a park", steps=1)
    assert clip.frames.isfinite().all() and clip.fps == FPS
    about = json.loads((tmp_path/"pipeline"/"sas_nb.json").read_text())["trained"][-1]["dit"]
    assert about["samples"] == 4*about["step"] and (tmp_path/"pipeline"/"dit.jsonl").exists() == (tmp_path/"dit.jsonl").exists()
    more = train_dit(tmp_path, vae, minutes=about["minutes"]+.1, clips=2, images=2, first=16, device="cpu")
    assert json.loads((tmp_path/"pipeline"/"sas_nb.json").read_text())["trained"][-1]["dit"]["step"] > about["step"]
    placeholders = pipe.tokenizer.convert_tokens_to_ids(["[v]", "[u]"])
    assert not more.text_encoder.shared.weight[placeholders].any(), "new words start as nothing"

def test_frames_are_described_without_their_movement_and_text_ends_in_padding():
    pipe = WanPipeline.from_pretrained(data_path("tiny"))
    said = torch.stack([captions(pipe.tokenizer, random_spec(i), i) for i in range(40)]) # (40, 2, 4, L-1)
    assert torch.equal(said[3], captions(pipe.tokenizer, random_spec(3), 3)) and len(said[:, 0].flatten(0, 1).unique(dim=0)) > 100
    moving = [sum(" is " in pipe.tokenizer.decode(row) for row in half) for half in said.transpose(0, 1).flatten(1, 2)]
    assert 0 < moving[1] < .5*moving[0], "a frame is mostly described without its movement"
    assert not text_of(pipe, ["a man in a park"])[:, -1].any()

def test_who_wears_which_colour_reaches_the_text():
    pipe = WanPipeline.from_pretrained(data_path("tiny"))
    words = lambda prompt: dict(zip(pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(prompt).input_ids), text_of(pipe, [prompt])[0].detach()))
    for prompt in ("a man in a {} shirt and {} trousers", "on a beach, a woman in a {} shirt and {} trousers"):
        one, other = words(prompt.format("red", "blue")), words(prompt.format("blue", "red"))
        for colour in ("▁red", "▁blue"): assert (one[colour]-other[colour]).norm() > .1*one[colour].norm(), colour


def test_a_text_encoder_is_begun_with_where_the_dit_does_not_fit(tmp_path):
    from sas_nb.lab.pretrain import copy_weights
    torch.manual_seed(0)
    tiny_pipeline(tiny_autoencoder()).save_pretrained(tmp_path)
    other, alike = (tiny_pipeline(tiny_autoencoder(z_dim=z)) for z in (4, 16))
    before = {k: v.clone() for k, v in other.transformer.state_dict().items()}
    for pipe in (other, alike): copy_weights(tmp_path, pipe)
    given = tiny_pipeline(tiny_autoencoder()).from_pretrained(tmp_path)
    for pipe in (other, alike):
        assert all(torch.equal(v, pipe.text_encoder.state_dict()[k]) for k, v in given.text_encoder.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in other.transformer.state_dict().items())
    assert all(torch.equal(v, alike.transformer.state_dict()[k]) for k, v in given.transformer.state_dict().items())
