"Flow matching against closed forms and against diffusers' own schedulers."
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from sas_nb.files import UserError
from sas_nb.flow import (clean_estimate, flow_loss, guided, interpolate, loss_per_sample, quantile_losses,
                         sample_times, schedule, shift_times, velocity_target)


@pytest.fixture
def g(): return torch.Generator().manual_seed(0)

def randn(g, *shape, dtype=torch.float64): return torch.randn(*shape, generator=g, dtype=dtype)


# the road

@pytest.mark.parametrize("shape", [(4, 2), (4, 4, 4), (3, 16, 5, 8, 8)])
def test_clean_estimate_inverts_interpolate(g, shape):
    x0, noise, t = randn(g, *shape), randn(g, *shape), torch.rand(shape[0], generator=g)
    x_t = interpolate(x0, noise, t)
    torch.testing.assert_close(clean_estimate(x_t, velocity_target(x0, noise), t), x0)
    for i in range(shape[0]): torch.testing.assert_close(x_t[i], interpolate(x0[i:i+1], noise[i:i+1], t[i].item())[0])

def test_velocity_is_the_derivative(g):
    x0, noise = randn(g, 4, 3), randn(g, 4, 3)
    slope = (interpolate(x0, noise, .6) - interpolate(x0, noise, .4)) / .2
    torch.testing.assert_close(slope, velocity_target(x0, noise))

@pytest.mark.parametrize("t", [torch.rand(3), torch.rand(4, 1), torch.rand(1)])
def test_times_must_fit_the_batch(g, t):
    with pytest.raises(UserError, match="one time per sample"): interpolate(randn(g, 4, 3), randn(g, 4, 3), t)


# the loss

def test_loss(g):
    pred, target = randn(g, 4, 3, 5, dtype=torch.float32), randn(g, 4, 3, 5, dtype=torch.float32)
    torch.testing.assert_close(flow_loss(pred, target), torch.nn.functional.mse_loss(pred, target))
    torch.testing.assert_close(loss_per_sample(pred, target).mean(), flow_loss(pred, target))
    assert loss_per_sample(pred, target).shape == (4,)

def test_loss_weights(g):
    pred, target, w = randn(g, 4, 3, 5), randn(g, 4, 3, 5), torch.tensor([0., 1, 2, .5])
    torch.testing.assert_close(loss_per_sample(pred, target, w), w * loss_per_sample(pred, target))
    mask = torch.zeros(1, 3, 1); mask[0, 1] = 1
    torch.testing.assert_close(loss_per_sample(pred, target, mask), loss_per_sample(pred[:, 1], target[:, 1]) / 3)

def test_square_batch_weights_are_per_sample(g):
    pred, target, w = randn(g, 4, 4), randn(g, 4, 4), torch.tensor([1., 0, 0, 0])
    assert (loss_per_sample(pred, target, w)[1:] == 0).all() and loss_per_sample(pred, target, w)[0] > 0

def test_loss_refuses_to_broadcast(g):
    with pytest.raises(UserError, match="differ in shape"): flow_loss(randn(g, 4, 3), randn(g, 4, 1))

def test_loss_in_bfloat16_is_float32_and_trains(g):
    pred = randn(g, 2, 3).bfloat16().requires_grad_()
    loss = flow_loss(pred, torch.zeros(2, 3, dtype=torch.bfloat16))
    loss.backward()
    assert loss.dtype == torch.float32 and pred.grad.isfinite().all() and pred.grad.abs().sum() > 0


# times

@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
@pytest.mark.parametrize("shift", [.5, 1., 3., 12.])
def test_times_lie_strictly_inside(g, kind, shift, stratified):
    t = sample_times(20_000, g, kind, shift, stratified)
    assert t.shape == (20_000,) and t.dtype == torch.float32 and t.min() > 0 and t.max() < 1

@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
@pytest.mark.parametrize("shift", [.5, 1., 12.])
def test_times_stay_inside_when_the_draw_is_an_end(monkeypatch, kind, shift):
    monkeypatch.setattr("sas_nb.flow._uniform", lambda *_: torch.tensor([0., 1.]))
    low, high = sample_times(2, kind=kind, shift=shift).tolist()
    assert 0 < low < .01 and .99 < high < 1

@pytest.mark.parametrize("stratified", [True, False])
def test_distributions(g, stratified):
    n, probs = 40_000, torch.tensor([.1, .25, .5, .75, .9])
    uniform = sample_times(n, g, stratified=stratified)
    torch.testing.assert_close(uniform.quantile(probs), probs, atol=.01, rtol=0)
    normal = sample_times(n, g, "logit_normal", stratified=stratified).logit()
    torch.testing.assert_close(normal.quantile(probs), torch.special.ndtri(probs), atol=.03, rtol=0)
    shifted = sample_times(n, g, shift=3., stratified=stratified)
    torch.testing.assert_close(shifted.quantile(probs), shift_times(probs, 3.), atol=.01, rtol=0)

@pytest.mark.parametrize("n", [1, 2, 8, 33])
def test_stratified_visits_every_slice_once_in_no_order(g, n):
    draws = torch.stack([sample_times(n, g) for _ in range(200)])
    assert all((d * n).long().sort().values.equal(torch.arange(n)) for d in draws)
    torch.testing.assert_close(draws.mean(0), torch.full((n,), .5), atol=.1, rtol=0)

def test_times_are_reproducible():
    draw = lambda: sample_times(8, torch.Generator().manual_seed(3))
    assert draw().equal(draw())
    torch.manual_seed(1); first = sample_times(8)
    torch.manual_seed(1); assert sample_times(8).equal(first)

def test_times_errors():
    with pytest.raises(UserError, match="uniform"): sample_times(4, kind="cosine")
    with pytest.raises(UserError, match="above 0"): sample_times(4, shift=0.)

def test_shift_keeps_ends_order_and_composes():
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    assert shift_times(t, 5.)[[0, -1]].tolist() == [0, 1] and (shift_times(t, 5.).diff() > 0).all()
    torch.testing.assert_close(shift_times(shift_times(t, 5.), 1 / 5), t)

def test_quantile_losses():
    times, losses = torch.tensor([0., .24, .5, .99, 1.]), torch.tensor([1., 3., 5., 7., 9.])
    assert quantile_losses(times, losses) == [2., None, 5., 8.]
    assert quantile_losses(times, losses, n=1) == [5.]
    assert quantile_losses(torch.empty(0), torch.empty(0)) == [None] * 4


# guidance

def test_guidance(g):
    cond, uncond, x = (randn(g, 4, 3, dtype=torch.float32) for _ in range(3))
    def velocity(x, t, text): return text
    def at(scale): return guided(velocity, x, torch.rand(4), torch.cat([cond, uncond]), scale)
    torch.testing.assert_close(at(0.), uncond)
    torch.testing.assert_close(guided(velocity, x, torch.rand(4), cond, 1.), cond)
    torch.testing.assert_close(at(3.) - at(2.), cond - uncond)
    torch.testing.assert_close(at(8.), uncond + 8 * (cond - uncond))

def test_guidance_asks_once_and_only_for_the_prompt_at_scale_1(g):
    calls = []
    def velocity(x, t, text):
        calls.append((x, t, text))
        return x
    x, t = randn(g, 2, 3), torch.rand(2)
    guided(velocity, x, t, randn(g, 4, 5), 2.)
    guided(velocity, x, t, randn(g, 2, 5), 1)
    assert [tuple(map(len, c)) for c in calls] == [(4, 4, 4), (2, 2, 2)]
    assert calls[0][0].equal(torch.cat([x, x])) and calls[0][1].equal(torch.cat([t, t]))

def test_guidance_in_bfloat16_subtracts_in_float32():
    x = torch.zeros(1, 1)
    text = torch.tensor([[257.], [256.]]).bfloat16()
    def velocity(x, t, text): return text
    assert guided(velocity, x, torch.ones(1), text, 4.).dtype == torch.float32


# the schedule

@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("shift", [.5, 1., 3., 8.])
def test_schedule_is_diffusers(steps, shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift); theirs.set_timesteps(steps)
    torch.testing.assert_close(schedule(steps, shift), theirs.sigmas, atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule(steps, shift)[:-1] * 1000, theirs.timesteps, atol=1e-3, rtol=0)

def test_schedule_needs_a_step():
    with pytest.raises(UserError, match="at least one"): schedule(0)
