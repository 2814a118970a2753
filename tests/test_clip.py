"""Every kind of file a person may bring, good and bad, made here with PyAV and Pillow."""
import errno, json, math, os, re
from fractions import Fraction

import av, numpy as np, pytest, torch
from PIL import Image

from sas_nb import stream as stream_module, video as video_module
from sas_nb.clip import Clip
from sas_nb.files import UserError
from sas_nb.resample import cover_box, fit_length, resample
from sas_nb.sheet import contact_sheet
from sas_nb.video import preflight
from sas_nb.writing import atomic

RED, GREEN, BLUE, WHITE = (.9, .1, .1), (.1, .8, .2), (.1, .2, .9), (.95, .95, .95)


def quarters(n=24, fps=24., h=48, w=64):
    "Red, green / blue, white; a black bar counts the frames by moving down, so that no two are alike."
    x = torch.zeros(n, 3, h, w)
    for rows, cols, c in ((slice(h//2), slice(w//2), RED), (slice(h//2), slice(w//2, w), GREEN),
                          (slice(h//2, h), slice(w//2), BLUE), (slice(h//2, h), slice(w//2, w), WHITE)):
        x[:, :, rows, cols] = torch.tensor(c)[:, None, None]
    for k in range(n): x[k, :, h*k//n:h*k//n + max(2, h//12)] = 0
    return Clip(x, fps, "quarters")


def levels(n=24, fps=24., h=32, w=32):
    "Frame k is grey k/n all over: the value read back tells which frame it was."
    return Clip((torch.arange(n)/n).view(n, 1, 1, 1).expand(n, 3, h, w).clone(), fps, "levels")


def which(c, n=24): return [round(float(f.mean())*n) for f in c.frames]


def write(path, c, codec="libx264", pts=None, base=None, turn=None, mirror=False, aspect=None, fast=True, gop=None, pix_fmt="yuv420p"):
    "A file with time stamps `pts` (in 1/base s), display matrix and pixel aspect of our choice."
    base = base or (1000 if pts else Fraction(c.fps).limit_denominator(1001))
    with av.open(str(path), "w", options={"movflags": "+faststart"} if fast and path.suffix in (".mp4", ".mov") else {}) as f:
        s = f.add_stream(codec, rate=Fraction(c.fps).limit_denominator(1001), options={"crf": "4"} if codec == "libx264" else {"b": "2M", **({"auto-alt-ref": "0"} if "vpx" in codec else {})})
        s.height, s.width, s.pix_fmt = *c.shape[2:], pix_fmt
        s.codec_context.time_base = 1/Fraction(base)
        if gop: s.codec_context.gop_size = gop
        if aspect: s.codec_context.sample_aspect_ratio = aspect
        if turn is not None: s.set_display_rotation(turn, hflip=mirror)
        for k, x in enumerate((c.frames*255).round().byte().permute(0, 2, 3, 1).numpy()):
            if pix_fmt == "yuva420p":
                alpha = np.zeros((*x.shape[:2], 1), np.uint8)
                alpha[:, :x.shape[1]//2] = 255
                frame = av.VideoFrame.from_ndarray(np.concatenate([x, alpha], 2), format="rgba")
            else: frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(x), format="rgb24")
            frame.pts, frame.time_base = (pts[k] if pts else round(k*base/c.fps)), 1/Fraction(base)
            f.mux(s.encode(frame))
        f.mux(s.encode())
    return path


def corners(frame):
    "The colours near the four corners, clockwise from the top left."
    h, w = frame.shape[1:]
    y, x = h//4, w//4
    return [tuple(round(float(v), 1) for v in frame[:, r, c]) for r, c in ((y, x), (y, w - x), (h - y, w - x), (h - y, x))]


# ---------------------------------------------------------------- the clip itself

def test_clip_knows_its_shape_and_clock():
    c = quarters(16, 8)
    assert (len(c), c.shape, c.duration, c.times[2]) == (16, (16, 3, 48, 64), 2., .25)
    assert "quarters" in repr(c) and "16 frames" in repr(c)
    assert c[3].shape == (3, 48, 64) and len(c[2:7]) == 5 and c[::2].fps == 4 and c[::-1].fps == 8
    assert torch.equal(c[::-1].frames[0], c.frames[-1]) and len(list(c)) == 16


@pytest.mark.parametrize("frames, match", [
    (torch.zeros(17, 64, 64, 3), "time first"), (torch.zeros(3, 8, 8), "T, 3, H, W"), (torch.zeros(0, 3, 8, 8), "T, 3, H, W"),
    (np.zeros((5, 3, 8, 8)), "ndarray"), (torch.zeros(5, 3, 8, 8, dtype=torch.uint8), "divide by 255"),
    (torch.full((5, 3, 8, 8), 200.), "rescale"), (-torch.ones(5, 3, 8, 8), "rescale")])
def test_clip_refuses_what_is_not_frames(frames, match):
    with pytest.raises(UserError, match=match): Clip(frames)


@pytest.mark.parametrize("fps", [0, -8, 1e-4, 1e6, math.nan, math.inf, "8", True])
def test_clip_refuses_absurd_rates(fps):
    with pytest.raises(UserError, match="from 0.01 to 240: give frames per second"): Clip(torch.zeros(5, 3, 8, 8), fps)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".gif"])
def test_the_slowest_is_saved(tmp_path, suffix):
    slow = Clip(smooth(5).frames, .01)
    assert Clip.load(slow.save(tmp_path/f"a{suffix}", scale=1)).shape == slow.shape and slow.to_mp4() and slow.to_webp()


@pytest.mark.parametrize("side", [0, -1, 7, 99.5, "a"])
def test_a_side_that_cannot_be(side):
    for make in (smooth(5).to_mp4, smooth(5).to_webp):
        with pytest.raises(UserError, match="side=.* must be a whole number from 8"): make(side)


def test_empty_slice_is_explained():
    with pytest.raises(UserError, match="frames 0 to 15"): quarters(16)[20:]


def test_overshoot_is_clamped_and_half_precision_is_welcome():
    c = Clip(torch.full((5, 3, 8, 8), 1.05, dtype=torch.bfloat16))
    assert c.frames.dtype == torch.float32 and c.frames.max() == 1


# ---------------------------------------------------------------- time and space

def test_resample_and_fit_length():
    timed = [(Fraction(i, 30), Fraction(1, 30), i) for i in range(60)]
    assert [i for i, *_ in resample(timed, 30)] == list(range(60))
    assert len(list(resample(timed, 8))) == 17 and len(list(resample(timed[:-1], 8))) == 16 and len(list(resample(timed, 15))) == 30
    assert [i for i, *_ in resample([(Fraction(0), 1, "a")], 4)] == [0]*4
    assert list(resample([], 8)) == [] and list(resample(timed, 8, start=2)) == []
    assert [fit_length(n) for n in (1, 4, 5, 17, 20, 21)] == [1, 1, 5, 17, 17, 21]


def test_resample_reads_no_further_than_it_must():
    seen = []
    def endless():
        i = 0
        while True:
            seen.append(i)
            yield Fraction(i, 24), Fraction(1, 24), i
            i += 1
    ticks = resample(endless(), 8)
    assert [next(ticks)[0] for _ in range(17)] == list(range(0, 51, 3)) and len(seen) == 50


def test_cover_box_is_centred_and_has_the_proportions():
    assert cover_box((48, 64), (32, 32)) == (8, 0, 56, 48)
    l, t, r, b = cover_box((47, 63), (64, 48))
    assert (r - l)/(b - t) == pytest.approx(48/64) and l + r == pytest.approx(63) and t + b == pytest.approx(47)


# ---------------------------------------------------------------- reading good files

@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.webm", "libvpx"), ("b.webm", "libvpx-vp9"),
                                         ("a.avi", "mpeg4"), ("a.mkv", "ffv1")])
def test_native_rate_gives_every_frame_once(tmp_path, name, codec):
    c = Clip.load(write(tmp_path/name, levels(), codec))
    assert c.shape == (24, 3, 32, 32) and c.fps == pytest.approx(24) and c.name == name[0]
    assert which(c) == list(range(24)) and not c.report.variable and c.report.dropped == []


@pytest.mark.parametrize("rate", [8, 12, 15, 24, 29.97, 60])
def test_any_rate_follows_the_clock(tmp_path, rate):
    c = Clip.load(write(tmp_path/"a.mp4", levels()), fps=rate)
    assert len(c) == math.ceil(round(rate, 5)) + (rate == 8) and c.fps == pytest.approx(rate, abs=1e-3)
    assert all(abs(t - k/c.fps) <= 1/48 + .021 for k, t in enumerate(c.report.times))
    assert which(c) == [round(t*24) for t in c.report.times]


def test_variable_rate_is_read_by_time_stamps(tmp_path):
    pts = [0, 40, 80, 120, 500, 540, 580, 1000, 1040, 1500, 1540, 1580]
    path = write(tmp_path/"v.mp4", levels(12), pts=pts)
    c = Clip.load(path, fps=10)
    nearest = [min(range(12), key=lambda i: (abs(pts[i] - t), i)) for t in range(0, 1500, 100)]
    assert which(c, 12)[:15] == nearest and c.report.variable and "variable" in str(c.report)
    webm = Clip.load(write(tmp_path/"v.webm", levels(12), "libvpx", pts=pts), fps=10)
    assert which(webm, 12)[:15] == nearest


@pytest.mark.parametrize("gop", [2, 12, 250])
@pytest.mark.parametrize("name, codec", [("s.mp4", "libx264"), ("s.webm", "libvpx"), ("s.ts", "libx264")])
def test_start_seeks_to_the_right_frame(tmp_path, name, codec, gop):
    path = write(tmp_path/name, levels(48), codec, gop=gop)
    c = Clip.load(path, start=1, num_frames=5, fps=8)
    assert which(c, 48) == [24, 27, 30, 33, 36] and c.report.kept == [0, 3, 6, 9, 12]
    assert c.report.times == pytest.approx([1, 1.125, 1.25, 1.375, 1.5], abs=2e-3) and len(c.report.dropped) == 8


def test_start_in_a_stream_that_cannot_seek(tmp_path):
    c = Clip.load(write(tmp_path/"s.h264", levels(48)), start=1, num_frames=5)
    assert len(c) == 5 and all(b > a for a, b in zip(which(c, 48), which(c, 48)[1:]))


def test_start_in_a_gif(tmp_path):
    levels(16, 8).save(tmp_path/"a.gif")
    assert which(Clip.load(tmp_path/"a.gif", start=1, fps=8), 16) == list(range(8, 16))


def test_long_video_is_not_decoded_to_the_end(tmp_path, monkeypatch):
    path = write(tmp_path/"long.mp4", levels(600, 30), gop=250)
    made = []
    monkeypatch.setattr(stream_module, "frame_picture", lambda *a, real=stream_module.frame_picture, **k: made.append(1) or real(*a, **k))
    r = preflight(path)
    assert r.num_frames == 17 and len(made) == 17 and r.kept[-1] + len(r.dropped) < 120
    assert any("after the last frame are not used" in s for s in r.notes)


@pytest.mark.parametrize("turn, mirror, want", [
    (90, False, [GREEN, WHITE, BLUE, RED]), (-90, False, [BLUE, RED, GREEN, WHITE]),
    (180, False, [WHITE, BLUE, RED, GREEN]), (0, True, [GREEN, RED, BLUE, WHITE])])
def test_display_matrix(tmp_path, turn, mirror, want):
    "90 is a quarter turn counter-clockwise: the right side goes to the top."
    path = write(tmp_path/"r.mp4", quarters(5, 8), turn=turn, mirror=mirror)
    c = Clip.load(path)
    assert corners(c.frames[2]) == [pytest.approx(w, abs=.11) for w in want]
    assert c.shape[2:] == ((64, 48) if abs(turn) == 90 else (48, 64)) and c.report.turn != "none"
    assert c.report.native_size == c.shape[2:]


def test_pixels_that_are_not_square(tmp_path):
    c = Clip.load(write(tmp_path/"a.mp4", quarters(5, 8), aspect=Fraction(2, 1)))
    assert c.shape[2:] == (48, 128)


def test_odd_sizes_and_size(tmp_path):
    path = write(tmp_path/"odd.mkv", quarters(9, 8, 47, 63), "ffv1", pix_fmt="bgr0")
    assert Clip.load(path).shape == (9, 3, 47, 63)
    c = Clip.load(path, size=(32, 32))
    assert c.shape == (9, 3, 32, 32) and corners(c.frames[4]) == [pytest.approx(w, abs=.11) for w in (RED, GREEN, WHITE, BLUE)]
    assert c.report.cropped == pytest.approx(1 - 47*47/(47*63)) and c.report.box == (8, 0, 55, 47)


def test_shrinking_is_antialiased(tmp_path):
    stripes = Clip((torch.arange(128) % 2).float().view(1, 1, 1, 128).expand(5, 3, 128, 128).clone(), 8)
    for size in ((32, 32), (30, 30)):
        f = Clip.load(write(tmp_path/"s.mkv", stripes, "ffv1", pix_fmt="bgr0"), size=size).frames
        assert f.mean().item() == pytest.approx(.5, abs=.02) and f.std() < .08


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_webm_transparency_is_white(tmp_path, codec):
    c = Clip.load(write(tmp_path/"t.webm", Clip(torch.full((5, 3, 32, 32), .1), 8), codec, pix_fmt="yuva420p"))
    assert len(c) == 5 and c.frames[..., :12].mean() < .2 and c.frames[..., 20:].mean() > .9


def test_gif_transparency_is_white_and_its_delays_count(tmp_path):
    images = [Image.new("RGBA", (40, 30)) for _ in range(4)]
    for i, im in enumerate(images): im.paste((0, 0, 255, 255), (i*8, 5, i*8 + 8, 15))
    images[0].save(tmp_path/"a.gif", save_all=True, append_images=images[1:], duration=[100, 100, 300, 100], disposal=2)
    c = Clip.load(tmp_path/"a.gif", fps=10)
    left = [int(torch.nonzero(f[0, 10] < .5).min()) for f in c.frames]
    assert left == [0, 8, 16, 16, 24, 24] and c.frames[0, :, 25, 35].tolist() == [1, 1, 1]


def folder(path, images, names="frame{}.png"):
    path.mkdir()
    for i, im in enumerate(images): im.save(path/names.format(i))
    return path


def test_folder_is_sorted_as_people_count(tmp_path):
    path = folder(tmp_path/"f", [Image.new("L", (16, 16), 10*i) for i in range(12)])
    (path/"notes.txt").write_text("ignored")
    (path/".frame0.png").write_text("ignored")
    c = Clip.load(path, fps=4)
    assert [round(float(f.mean())*25.5) for f in c.frames] == list(range(12)) and (c.fps, c.name) == (4, "f")
    assert len(Clip.load(path, fps=4, start=1, num_frames=5)) == 5
    assert any("no clock" in s for s in Clip.load(path).report.notes)


def test_folder_modes_orientation_and_transparency(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    sideways = Image.new("RGB", (32, 16), "red")
    path = folder(tmp_path/"f", [Image.new("L", (16, 32), 255), Image.new("RGBA", (16, 32), (0, 0, 0, 0)), Image.new("P", (16, 32), 0),
                                 Image.fromarray(np.full((32, 16), 65535, np.uint16)), Image.new("1", (16, 32), 1)])
    Image.new("CMYK", (16, 32), (0, 0, 0, 0)).save(path/"frame5.jpg")
    sideways.save(path/"frame6.jpg", exif=exif)
    c = Clip.load(path)
    assert c.shape == (7, 3, 32, 16)
    assert [round(float(f.mean()), 1) for f in c.frames] == [1, 1, 0, 1, 1, 1, pytest.approx(.3, abs=.1)]


# ---------------------------------------------------------------- lengths and the report

def test_short_clip_takes_the_longest_length_and_says_so(tmp_path):
    c = Clip.load(write(tmp_path/"a.mp4", levels(12, 8)), num_frames=17, fps=8)
    assert len(c) == 9 and c.report.trimmed == 3 and any("12 are there: the clip is the first 9" in s for s in c.report.notes)


def test_preflight_and_load_agree(tmp_path):
    path = write(tmp_path/"a.mp4", quarters(48, 24), turn=90)
    wishes = dict(num_frames=13, fps=8, size=(32, 48), start=.25)
    r = preflight(path, **wishes)
    assert r.to_dict() == Clip.load(path, **wishes).report.to_dict()
    assert json.loads(json.dumps(r.to_dict()))["num_frames"] == 13
    assert (r.native_size, r.size, r.native_fps, r.duration) == ((64, 48), (32, 48), 24, 2)
    assert len(r.kept) == len(r.times) == 13 and r.kept == list(range(0, 37, 3)) and len(r.dropped) == 24


def test_report_shows_itself_safely(tmp_path):
    path = write(tmp_path/"<b>&.mp4", quarters(48, 24))
    r = preflight(path)
    assert "17 frames = 4·4 + 1" in str(r) and max(map(len, str(r).splitlines())) <= 100
    assert "&lt;b&gt;&amp;.mp4" in r._repr_html_() and "<b>" not in r._repr_html_() and 'scope="row"' in r._repr_html_()


def moving(n=17): return quarters(n, 8).frames


@pytest.mark.parametrize("frames, fps, match", [
    (torch.full((17, 3, 32, 32), .5), 8, "hardly anything moves"),
    (moving()*.06, 8, "very dark"),
    (torch.cat([moving()[:8], 1 - moving()[8:]]), 8, r"a cut 1\.00 s"),
    (moving(9), 4, "only 9 different pictures"),
    (moving().repeat_interleave(2, 0), 16, "same as the one before|enlarged")])
def test_warnings(tmp_path, frames, fps, match):
    r = preflight(write(tmp_path/"a.mp4", Clip(frames, fps)), fps=8 if fps < 16 else 16)
    assert any(re.search(match, w) for w in r.warnings), r.warnings


def test_no_warning_without_reason(tmp_path):
    assert preflight(quarters(20, 8, 64, 64).save(tmp_path/"a.mp4")).warnings == []


def test_enlarging_and_cropping_are_said(tmp_path):
    w = preflight(write(tmp_path/"a.mp4", quarters(17, 8, 16, 48))).warnings
    assert any("enlarged 4.0 times" in s for s in w) and any("67% of the picture" in s for s in w)


# ---------------------------------------------------------------- bad files, bad wishes

def test_missing(tmp_path):
    with pytest.raises(UserError, match="There is no file or folder"): Clip.load(tmp_path/"nope.mp4")
    with pytest.raises(UserError, match="download it first"): Clip.load("https://example.org/a.mp4")


def test_not_a_video(tmp_path):
    (tmp_path/"a.mp4").write_text("hello " * 500)
    with pytest.raises(UserError, match="cannot be read as a video"): Clip.load(tmp_path/"a.mp4")
    (tmp_path/"b.mp4").write_bytes(bytes(range(256))*40)
    with pytest.raises(UserError): Clip.load(tmp_path/"b.mp4")


def test_zero_bytes(tmp_path):
    (tmp_path/"a.mp4").touch()
    with pytest.raises(UserError, match="0 bytes"): preflight(tmp_path/"a.mp4")


def test_truncated_without_index(tmp_path):
    path = write(tmp_path/"a.mp4", quarters(48), fast=False)
    path.write_bytes(path.read_bytes()[:path.stat().st_size//2])
    with pytest.raises(UserError, match="cut off"): Clip.load(path)


def test_truncated_with_index(tmp_path):
    path = write(tmp_path/"a.mp4", Clip(torch.rand(96, 3, 48, 64, generator=torch.Generator().manual_seed(0)), 24), gop=12)
    whole = path.read_bytes()
    assert not any("cut off" in w for w in preflight(path).warnings)
    path.write_bytes(whole[:len(whole)//2])
    r = Clip.load(path, num_frames=25, fps=8).report
    assert 9 <= r.num_frames <= 17 and any("cut off before the 4.00 s" in w for w in r.warnings)
    early = Clip.load(path, num_frames=5, fps=8).report
    assert early.num_frames == 5 and any("cut off" in w for w in early.warnings)
    path.write_bytes(whole[:len(whole)//20])
    with pytest.raises(UserError, match="damaged or cut off|copy it again|no picture"): Clip.load(path, num_frames=17, fps=8)


def test_damage_in_the_middle_costs_frames_not_the_clip(tmp_path):
    path = write(tmp_path/"a.webm", Clip(torch.rand(48, 3, 48, 64, generator=torch.Generator().manual_seed(0)), 24), "libvpx")
    data = bytearray(path.read_bytes())
    data[len(data)//2:] = data[len(data)//2:3*len(data)//4]
    path.write_bytes(data)
    assert preflight(path, fps=24).warnings


def test_audio_only(tmp_path):
    with av.open(str(tmp_path/"a.m4a"), "w") as f:
        s = f.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, 0
        f.mux(s.encode(frame))
        f.mux(s.encode())
    with pytest.raises(UserError, match="only sound"): Clip.load(tmp_path/"a.m4a")


def test_one_frame(tmp_path):
    quarters(5, 8)[:1].save(tmp_path/"one.mp4")
    Image.new("RGB", (32, 32), "red").save(tmp_path/"one.png")
    for name in ("one.mp4", "one.png"):
        with pytest.raises(UserError, match="a motion needs at least 2.*num_frames=1"): Clip.load(tmp_path/name)
        with pytest.raises(UserError, match="at least 5"): preflight(tmp_path/name, fps=1)
        assert len(Clip.load(tmp_path/name, num_frames=1)) == 1


def test_folders_that_cannot_be_read(tmp_path):
    (tmp_path/"empty").mkdir()
    with pytest.raises(UserError, match="no images"): Clip.load(tmp_path/"empty")
    path = folder(tmp_path/"bad", [Image.new("RGB", (16, 16))]*6)
    (path/"frame3.png").write_bytes(b"not a png")
    with pytest.raises(UserError, match="'frame3.png'.*cannot be read"): Clip.load(path)
    path = folder(tmp_path/"cut", [Image.effect_noise((64, 64), 50)]*6)
    (path/"frame3.png").write_bytes((path/"frame3.png").read_bytes()[:900])
    with pytest.raises(UserError, match="'frame3.png'"): Clip.load(path)


def test_images_of_different_sizes(tmp_path):
    path = folder(tmp_path/"f", [Image.new("RGB", (16 + 4*i, 16), "red") for i in range(5)])
    with pytest.raises(UserError, match="differ in size: pass size="): Clip.load(path)
    assert Clip.load(path, size=(16, 16)).shape == (5, 3, 16, 16)


def test_start_beyond_the_end(tmp_path):
    for name, codec in (("a.mp4", "libx264"), ("a.webm", "libvpx")):
        path = write(tmp_path/name, levels(24), codec)
        with pytest.raises(UserError, match="start=5 s of its 1.0"): Clip.load(path, start=5)


@pytest.mark.parametrize("wish, match", [
    (dict(num_frames=16), "13 or 17"), (dict(num_frames=0), "1 or 5"), (dict(num_frames=-3), "1 or 5"), (dict(num_frames=10**9), "1021 or 1025|1025"),
    (dict(num_frames=17.5), "17 or 21"), (dict(fps=0), "frames per second"), (dict(fps=-1), "frames per second"), (dict(fps=1e5), "frames per second"),
    (dict(fps=math.nan), "frames per second"), (dict(size=(0, 64)), "picture size"), (dict(size=(64,)), "picture size"),
    (dict(size=(64, 10**6)), "picture size"), (dict(start=-1), "not a time"), (dict(start=math.inf), "not a time"), (dict(start=math.nan), "not a time")])
def test_absurd_wishes(tmp_path, wish, match):
    path = write(tmp_path/"a.mp4", levels(24))
    with pytest.raises(UserError, match=match): Clip.load(path, **wish)


def test_too_long_for_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(video_module, "_LIMIT", 10*32*32*12)
    with pytest.raises(UserError, match="too long to hold in memory"): Clip.load(write(tmp_path/"a.mp4", levels(24)))


def test_every_message_is_one_sentence(tmp_path):
    (tmp_path/"a.mp4").write_text("hello")
    for bad in (lambda: Clip.load(tmp_path/"a.mp4"), lambda: Clip.load("nope.mp4"), lambda: Clip(torch.zeros(1))):
        with pytest.raises(UserError) as e: bad()
        assert "\n" not in str(e.value) and str(e.value).endswith(".") and ":" in str(e.value)


# ---------------------------------------------------------------- writing

def smooth(n=17, h=64, w=64):
    k, y, x = torch.meshgrid(torch.arange(n)/n, torch.arange(h)/h, torch.arange(w)/w, indexing="ij")
    return Clip(torch.stack([.5 + .4*torch.sin(6*(x + k)), .5 + .4*torch.cos(6*(y - k)), .3 + .4*y], 1), 8, "smooth")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".gif"])
@pytest.mark.parametrize("scale", [1, None])
def test_round_trip(tmp_path, suffix, scale):
    c = smooth()
    back = Clip.load(c.save(tmp_path/f"a{suffix}", scale), fps=8, size=(64, 64))
    assert len(back) == 17 and (back.frames - c.frames).abs().mean() < (.03 if suffix == ".gif" else .012)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]
    assert back.report.native_size == ((64, 64) if scale else (256, 256))


def test_mp4_is_what_browsers_play(tmp_path):
    data = smooth().save(tmp_path/"a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path/"a.mp4")) as f:
        v = f.streams.video[0]
        assert (v.codec_context.name, v.pix_fmt, v.average_rate, v.codec_context.colorspace) == ("h264", "yuv420p", 8, 1)


def test_odd_sides_are_padded_not_cropped(tmp_path):
    c = Clip.load(quarters(5, 8, 47, 63).save(tmp_path/"a.mp4", 1))
    assert c.shape == (5, 3, 48, 64)
    assert torch.allclose(c.frames[..., 62], c.frames[..., 63], atol=.15)


def test_gif_keeps_time(tmp_path):
    levels(16, 8).save(tmp_path/"a.gif")
    with Image.open(tmp_path/"a.gif") as im:
        total = 0
        for k in range(im.n_frames):
            im.seek(k)
            total += im.info["duration"]
    assert total == 2000


def test_save_refuses_nan_unknown_suffix_and_odd_scales(tmp_path):
    c = smooth()
    with pytest.raises(UserError, match="NaN"): Clip(c.frames*math.nan).save(tmp_path/"a.mp4")
    with pytest.raises(UserError, match=".mp4, .mov, .webm or .gif"): c.save(tmp_path/"a.doc")
    with pytest.raises(UserError, match="whole number"): c.save(tmp_path/"a.mp4", scale=.5)
    assert list(tmp_path.iterdir()) == []


def test_save_replaces_and_creates_folders(tmp_path):
    path = tmp_path/"x/y/a.mp4"
    assert smooth().save(path) == path
    smooth()[:5].save(str(path))
    assert len(Clip.load(path)) == 5


# ---------------------------------------------------------------- atomic

def test_atomic_leaves_the_old_file_when_the_work_fails(tmp_path):
    (tmp_path/"a.txt").write_text("old")
    with pytest.raises(KeyError):
        with atomic(tmp_path/"a.txt") as tmp:
            assert tmp.parent == tmp_path and tmp.suffix == ".txt"
            tmp.write_text("new")
            raise KeyError
    assert (tmp_path/"a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("code, match", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")])
def test_atomic_says_what_the_disk_refuses(tmp_path, code, match):
    with pytest.raises(UserError, match=match):
        with atomic(tmp_path/"a.txt") as tmp:
            tmp.write_text("half")
            raise OSError(code, os.strerror(code))
    assert list(tmp_path.iterdir()) == []


def test_atomic_passes_on_errors_about_other_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        with atomic(tmp_path/"a.txt"): open(tmp_path/"missing")
    with pytest.raises(PermissionError):
        with atomic(tmp_path/"a.txt"): raise PermissionError(errno.EACCES, "denied", "/elsewhere")


def test_atomic_explains_a_file_in_the_way(tmp_path):
    (tmp_path/"file").touch()
    with pytest.raises(UserError, match="is a file and not a folder"):
        with atomic(tmp_path/"file/a.txt"): pass
    (tmp_path/"dir").mkdir()
    with pytest.raises(UserError, match="a folder has that name"):
        with atomic(tmp_path/"dir"): pass
    with pytest.raises(UserError, match="a file has that name"):
        with atomic(tmp_path/"file", marker="m"): pass


def write_folder(folder, marker="m.json", fail=False, **files):
    with atomic(folder, marker=marker) as tmp:
        (tmp/marker).write_text("{}")
        for name, text in files.items(): (tmp/name).write_text(text)
        if fail: raise KeyError


def test_atomic_folder(tmp_path):
    for text in ("one", "two"): write_folder(tmp_path/"c", a=text)
    assert (tmp_path/"c/a").read_text() == "two" and [p.name for p in tmp_path.iterdir()] == ["c"]
    with pytest.raises(KeyError): write_folder(tmp_path/"c", a="three", fail=True)
    assert (tmp_path/"c/a").read_text() == "two" and {p.name for p in (tmp_path/"c").iterdir()} == {"a", "m.json"}


def test_atomic_folder_never_deletes_what_is_not_ours(tmp_path):
    (tmp_path/"photos").mkdir()
    (tmp_path/"photos/cat.jpg").write_text("precious")
    for name in ("m.json", "cat.jpg"):
        with pytest.raises(UserError, match="Will not replace"):
            (tmp_path/"photos/m.json").write_text("{}")
            with atomic(tmp_path/"photos", marker="m.json", writes=(name,)): pytest.fail("the work must not even begin")
    (tmp_path/"photos/m.json").unlink()
    write_folder(tmp_path/"photos", a="one")
    assert (tmp_path/"photos/cat.jpg").read_text() == "precious"


def test_atomic_folder_comes_back_if_the_rename_fails(tmp_path, monkeypatch):
    write_folder(tmp_path/"c", a="old", b="old")
    before, real = {p.name: p.read_text() for p in (tmp_path/"c").iterdir()}, os.replace
    for last in range(1, 6):
        calls = []
        def flaky(a, b):
            calls.append(1)
            if len(calls) == last: raise OSError(errno.ENOSPC, "full")
            return real(a, b)
        monkeypatch.setattr(os, "replace", flaky)
        with pytest.raises(UserError, match="disk is full"): write_folder(tmp_path/"c", a="new", c="new")
        monkeypatch.undo()
        assert {p.name: p.read_text() for p in (tmp_path/"c").iterdir()} == before and [p.name for p in tmp_path.iterdir()] == ["c"]


# ---------------------------------------------------------------- showing

def test_html_is_accessible_and_escaped():
    c = smooth()
    c.name = '"><script>'
    out = c._repr_html_()
    assert "<script>" not in out and all(s in out for s in ("controls", "loop", "muted", "playsinline", "aria-label=", "data:video/mp4;base64,"))
    assert "autoplay" not in out and "17 frames" in out and len(out) < 200_000


def test_large_clips_are_shown_small(tmp_path):
    (tmp_path/"a.mp4").write_bytes(quarters(5, 8, 600, 800).to_mp4(side=120))
    assert Clip.load(tmp_path/"a.mp4").shape[2:] in ((240, 320), (360, 480), (120, 160), (480, 640))


def test_contact_sheet_has_rows_columns_and_labels():
    a, b = smooth(), smooth()[::2]
    one = contact_sheet({"a": a}, n=4)
    two = contact_sheet({"a": a, "a much longer label that has to be wrapped": a}, n=4)
    other = contact_sheet({"a": a, "b": b}, n=4)
    assert one.width == two.width and two.height > 1.7*one.height and other.height > two.height
    assert np.asarray(one)[:, :100].min() < 100, "the label is drawn"
    assert contact_sheet({"t": a.frames}, n=40).width > one.width
    assert a.sheet(n=3, title="T").height > a.sheet(n=3).height
    wrapped = contact_sheet({"a": a}, n=4, title="a [v1] woman and a [v2] man in a park "*5)
    assert wrapped.width == one.width and wrapped.height > one.height+50 and np.asarray(wrapped)[:, -4:].min() == 255, "no title is cut off"
    assert a.thumbnail(64).size == (64, 64)


def test_contact_sheet_pixels_are_the_frames():
    c = Clip(torch.tensor([1., 0, 0]).view(1, 3, 1, 1).expand(2, 3, 16, 16).clone(), 8)
    sheet = np.asarray(contact_sheet({"red": c}, n=2, height=64))
    red = (sheet == (255, 0, 0)).all(-1)
    assert red.sum() == 2*64*64


@pytest.mark.parametrize("rows, match", [({}, "at least one"), ({"a": torch.zeros(3, 8, 8)}, "T, 3, H, W"), ({"a": "file.mp4"}, "something else")])
def test_contact_sheet_refuses(rows, match):
    with pytest.raises(UserError, match=match): contact_sheet(rows)


def test_contact_sheet_of_mixed_sizes_and_lengths():
    contact_sheet({"one": quarters(1), "tall": quarters(9, 8, 300, 40), "": quarters(30, 8, 8, 8), "long" * 30: smooth().frames.half()})
