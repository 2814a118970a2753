"""Which frames of a file are read, when, and in what colours.
Every frame carries its number as six bars, so the truth needs no other program."""
import os
from fractions import Fraction

import av, numpy as np, pytest
from PIL import Image

from sas_nb.clip import Clip
from sas_nb.files import UserError
from sas_nb.video import preflight

H, W, N, FPS = 64, 96, 48, 12
QUIET = {"x265-params": "log-level=none"}
MPEG = {"b": "3M", "bf": "2"}


def bars(k, h=H, w=W):
    "Frame `k`: six bars spell it, black 0, white 1, lowest bit left; the strip above them always changes."
    row = np.repeat([255*(k >> b & 1) for b in range(6)], w//6).astype(np.uint8)
    x = row[None, :, None].repeat(h, 0).repeat(3, 2)
    x[:h//8] = 128 + 10*(k % 2)
    return x


def number(frame):
    w = frame.shape[-1]/6
    return sum(int(frame[:, :, round((b + .5)*w)].mean() > .5) << b for b in range(6))


def numbers(clip): return [number(f) for f in clip.frames]



def write(path, codec, format=None, n=N, fps=FPS, options=None, pix="yuv420p", gop=12, first=0, h=H, w=W,
          pts=None):
    "Frames `first` to `first + n - 1` as a file; `pts` in 1/fps s."
    options = {"threads": "1", **(options or {})}
    if codec not in ("gif", "apng", "prores_ks"): options["g"] = str(gop)
    with av.open(str(path), "w", format=format) as f:
        s = f.add_stream(codec, rate=fps, options=options)
        s.height, s.width, s.pix_fmt = h, w, pix
        for k in range(n):
            frame = av.VideoFrame.from_ndarray(bars(first + k, h, w), format="rgb24")
            frame.pts, frame.time_base = (pts[k] if pts else k), Fraction(1, fps)
            f.mux(s.encode(frame))
        f.mux(s.encode())
    if codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # it makes root's process real-time
    return path


def remux(path, source, change):
    "The packets of `source` in another container, each altered by `change(k, packet)`."
    with av.open(str(source)) as i, av.open(str(path), "w") as o:
        s = i.streams.video[0]
        t = o.add_stream_from_template(s)
        for k, p in enumerate(i.demux(s)):
            if not p.size: continue
            change(k, p)
            p.stream = t
            o.mux(p)
    return path


# ---------------------------------------------------------------- order, count and times

OPEN = {"x264-params": "open-gop=1"}
KINDS = [
    ("h264.mp4", "libx264", {}), ("h264.mkv", "libx264", {}), ("h264.avi", "libx264", {}),
    ("h264.ts", "libx264", {}),
    ("h264.mov", "libx264", {}), ("open.avi", "libx264", OPEN), ("open.ts", "libx264", OPEN),
    ("hevc.mp4", "libx265", QUIET), ("vp9.webm", "libvpx-vp9", {"cpu-used": "8"}),
    ("av1.webm", "libsvtav1", {"preset": "12"}), ("mpeg4.avi", "mpeg4", {"b": "3M"}),
    ("mpeg4_b.avi", "mpeg4", MPEG),
    ("mpeg4_b.mp4", "mpeg4", MPEG), ("mpeg2.ts", "mpeg2video", MPEG), ("prores.mov", "prores_ks", {}),
    ("a.gif", "gif", {}), ("a.apng", "apng", {})]
PIX = {"prores_ks": "yuv422p10le", "gif": "rgb8", "apng": "rgb24"}


@pytest.mark.parametrize("name, codec, options", KINDS, ids=[k[0] for k in KINDS])
def test_order_count_and_times(tmp_path, name, codec, options):
    fps = 24 if codec == "mpeg2video" else FPS
    path = write(tmp_path/name, codec, fps=fps, options=options, pix=PIX.get(codec, "yuv420p"))
    whole = Clip.load(path)
    assert numbers(whole) == list(range(N)) and whole.fps == pytest.approx(fps) and whole.report.dropped == []
    assert whole.report.times == pytest.approx([k/fps for k in range(N)], abs=.011)
    some = Clip.load(path, fps=12, num_frames=17)
    assert numbers(some) == list(range(0, 17*fps//12, fps//12))
    middle = N/fps/2 + 1/fps
    late = Clip.load(path, start=middle)
    assert numbers(late) == list(range(N//2 + 1, N))
    assert late.report.times[0] == pytest.approx(middle, abs=.011)


def test_program_stream(tmp_path):
    path = write(tmp_path/"a.mpg", "mpeg2video", fps=25, options=MPEG)
    assert numbers(Clip.load(path)) == list(range(N))
    assert numbers(Clip.load(path, start=1)) == list(range(25, N))
    assert numbers(Clip.load(path, fps=12.5, num_frames=17)) == list(range(0, 34, 2))


def test_start_in_an_apng(tmp_path):
    "Each frame holds only what changed, so reading begins at the first."
    path = write(tmp_path/"a.apng", "apng", pix="rgb24")
    for k in (8, 16, 24, 32): assert numbers(Clip.load(path, start=k/FPS)) == list(range(k, N))


@pytest.mark.parametrize("name", ["a.mov", "a.mkv", "a.mp4"])
def test_stamps_of_decoding_taken_for_stamps_of_showing(tmp_path, name):
    "Old tools wrote the time of decoding only."
    source = write(tmp_path/"source.mkv", "libx264")
    def decoding_only(k, p): p.pts = p.dts = round(k/FPS/p.time_base)
    path = remux(tmp_path/name, source, decoding_only)
    assert numbers(Clip.load(path)) == list(range(N))
    assert numbers(Clip.load(path, start=2)) == list(range(24, N))


def test_avi_with_two_ticks_a_frame(tmp_path):
    "A header of 24 a second over 12 frames a second: neither doubled nor lost."
    source = write(tmp_path/"source.avi", "libx264")
    with av.open(str(source)) as i, av.open(str(tmp_path/"a.avi"), "w") as o:
        s = i.streams.video[0]
        t = o.add_stream_from_template(s)
        t.time_base = Fraction(1, 24)
        for k, p in enumerate(p for p in i.demux(s) if p.size):
            p.stream, p.time_base = t, Fraction(1, 24)
            p.pts = p.dts = 2*k
            o.mux(p)
    clip = Clip.load(tmp_path/"a.avi")
    assert clip.fps == pytest.approx(12) and numbers(clip) == list(range(N))


def test_packed_bitstream(tmp_path):
    "Two frames in one packet and an empty one after, as DivX wrote them."
    source = write(tmp_path/"source.avi", "mpeg4", n=41, gop=10, options={"b": "3M", "bf": "1"})
    with av.open(str(source)) as i: packets = [bytes(p) for p in i.demux(i.streams.video[0]) if p.size]
    def kind(data): return "IPB"[data[data.index(b"\0\0\1\xb6") + 4] >> 6]
    packed = []
    for data in packets:
        if kind(data) == "B": packed[-1:] = [packed[-1] + data, b"\0\0\1\xb6\x51\x80\x7f"]
        else: packed.append(data)
    at = packed[0].index(b"\0\0\1\xb6")
    packed[0] = packed[0][:at] + b"\0\0\1\xb2DivX503b1393p" + packed[0][at:]
    with av.open(str(tmp_path/"packed.avi"), "w") as o:
        t = o.add_stream("mpeg4", rate=FPS)
        t.height, t.width, t.pix_fmt = H, W, "yuv420p"
        for k, data in enumerate(packed):
            p = av.Packet(data)
            p.stream, p.pts, p.dts, p.time_base, p.is_keyframe = t, k, k, Fraction(1, FPS), kind(data) == "I"
            o.mux(p)
    assert numbers(Clip.load(tmp_path/"packed.avi")) == list(range(41))


def test_frames_with_one_time_are_both_kept(tmp_path):
    source = write(tmp_path/"source.mkv", "mpeg4", n=24, options={"b": "3M"})
    def doubled(k, p): p.pts = p.dts = round((k - (k % 6 == 5))/FPS/p.time_base)
    clip = Clip.load(remux(tmp_path/"a.mkv", source, doubled))
    assert numbers(clip) == list(range(24))


# ---------------------------------------------------------------- more than one recording, late beginnings

def joined(path, *parts):
    path.write_bytes(b"".join(p.read_bytes() for p in parts))
    return path


HOUR = 3600*FPS


@pytest.mark.parametrize("kind, codec, begins", [
    ("ts", "libx264", 0), ("ts", "libx264", 3*HOUR), ("ts", "mpeg2video", 0), ("mpg", "mpeg2video", 0),
    ("mkv", "libx264", 0), ("webm", "libvpx-vp9", 0)])
def test_joined_recordings_are_read_on(tmp_path, kind, codec, begins):
    "The clock of the second part starts anew, or hours later."
    fps, options = (25, MPEG) if codec == "mpeg2video" else (FPS, {})
    a = write(tmp_path/f"a.{kind}", codec, n=24, fps=fps, options=options)
    stamps = [begins + k for k in range(24)]
    b = write(tmp_path/f"b.{kind}", codec, n=24, fps=fps, options=options, first=24, pts=stamps)
    path = joined(tmp_path/f"both.{kind}", a, b)
    clip = Clip.load(path)
    assert numbers(clip) == list(range(48)) and clip.report.times[-1] == pytest.approx(47/fps, abs=.01)
    assert any(f"jump at {24/fps:.2f} s" in s for s in clip.report.notes)
    assert not any("damaged" in s for s in clip.report.warnings)
    assert numbers(Clip.load(path, start=36/fps)) == list(range(36, 48))
    if kind in ("ts", "mpg"): assert preflight(path, fps=fps).duration == pytest.approx(48/fps, abs=.01)


def test_three_parts_back_and_forth(tmp_path):
    parts = [write(tmp_path/f"{i}.ts", "libx264", n=15, first=15*i, pts=[begins + k for k in range(15)])
             for i, begins in enumerate((HOUR, 0, 9*HOUR))]
    clip = Clip.load(joined(tmp_path/"a.ts", *parts))
    assert numbers(clip) == list(range(45)) and sum("jump" in s for s in clip.report.notes) == 2


def test_parts_of_different_sizes(tmp_path):
    small = write(tmp_path/"1.ts", "libx264", n=24)
    path = joined(tmp_path/"a.ts", small, write(tmp_path/"2.ts", "libx264", n=24, first=24, h=96, w=144))
    with pytest.raises(UserError, match="differ in size: pass size="): Clip.load(path)
    clip = Clip.load(path, size=(32, 48))
    assert numbers(clip) == list(range(48))
    assert any("change their size at 2.00 s" in s for s in clip.report.notes)


def test_clock_that_runs_over(tmp_path):
    "A transport stream counts 26.5 hours and begins again."
    last = 2**33*FPS//90000
    path = write(tmp_path/"a.ts", "libx264", pts=[last - 30 + k for k in range(N)])
    assert numbers(Clip.load(path)) == list(range(N))
    assert numbers(Clip.load(path, start=3)) == list(range(36, N))


def with_sound(path, delay):
    "Sound from 0 s, frames from `delay` s."
    with av.open(str(path), "w") as f:
        v = f.add_stream("libx264", rate=FPS, options={"threads": "1", "g": "12"})
        s = f.add_stream("aac", rate=48000)
        v.height, v.width, v.pix_fmt = H, W, "yuv420p"
        for k in range(60):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
            sound.rate, sound.pts, sound.time_base = 48000, 4800*k, Fraction(1, 48000)
            f.mux(s.encode(sound))
        f.mux(s.encode())
        for k in range(N):
            frame = av.VideoFrame.from_ndarray(bars(k), format="rgb24")
            frame.pts, frame.time_base = k + delay*FPS, Fraction(1, FPS)
            f.mux(v.encode(frame))
        f.mux(v.encode())
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
def test_start_counts_from_where_the_sound_begins(tmp_path, name):
    path = with_sound(tmp_path/name, 3)
    clip = Clip.load(path, fps=12, num_frames=17)
    assert numbers(clip) == list(range(17)) and clip.report.times[0] == pytest.approx(3, abs=.05)
    assert any("the first picture comes 3.0" in s for s in clip.report.notes)
    assert numbers(Clip.load(path, start=5, num_frames=9)) == list(range(24, 33))
    assert preflight(path).duration == pytest.approx(7, abs=.1) and not preflight(path).warnings[1:]


def test_video_alone_begins_at_once(tmp_path):
    path = write(tmp_path/"a.mkv", "libx264", pts=[36 + k for k in range(N)])
    clip = Clip.load(path)
    assert numbers(clip) == list(range(N))
    assert clip.report.times[0] == 0
    assert numbers(Clip.load(path, start=2)) == list(range(24, N))


# ---------------------------------------------------------------- which of several videos

def two_videos(path, pictures, marked=False, codec="mjpeg", default=None):
    "A large red picture, or several, as the first stream; the numbered frames as the second."
    mark = av.stream.Disposition
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4v" else None) as f:
        a, b = f.add_stream(codec, rate=FPS), f.add_stream("libx264", rate=FPS, options={"threads": "1"})
        a.height, a.width, a.pix_fmt = 128, 192, {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
        b.height, b.width, b.pix_fmt = H, W, "yuv420p"
        if marked: a.disposition = mark.attached_pic
        if default is not None:
            a.disposition, b.disposition = ((mark.default, mark(0)), (mark(0), mark.default))[default]
        for k in range(N):
            for s, x in ((a, np.full((128, 192, 3), (255, 0, 0), np.uint8)), (b, bars(k))):
                if s is a and k >= pictures: continue
                frame = av.VideoFrame.from_ndarray(x, format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, FPS)
                f.mux(s.encode(frame))
        f.mux(a.encode())
        f.mux(b.encode())
    return path


@pytest.mark.parametrize("name, codec, marked", [
    ("a.mp4", "mjpeg", True), ("a.m4v", "mjpeg", True), ("a.mp4", "mjpeg", False), ("a.mov", "png", False),
    ("a.mkv", "mjpeg", False), ("b.mkv", "mjpeg", True)])
def test_cover_before_the_video(tmp_path, name, codec, marked):
    clip = Clip.load(two_videos(tmp_path/name, 1, marked, codec))
    assert numbers(clip) == list(range(N)) and any("cover picture" in s for s in clip.report.notes)


def test_the_default_of_two_videos(tmp_path):
    red = Clip.load(two_videos(tmp_path/"a.mkv", N, codec="mpeg4", default=0), num_frames=5)
    assert red.shape[2:] == (128, 192) and any("2 videos" in s for s in red.report.notes)
    assert numbers(Clip.load(two_videos(tmp_path/"b.mkv", N, codec="mpeg4", default=1))) == list(range(N))


# ---------------------------------------------------------------- colours

PATCHES = ((200, 40, 40), (40, 180, 60), (40, 60, 200), (220, 220, 60))
MATRIX = {"601": (.299, .114), "709": (.2126, .0722), "2020": (.2627, .0593)}


def patches(path, matrix, full, h, w, tag=2):
    "Four colours, turned into YUV by the formula; `tag` is what the file says of its matrix (2: nothing)."
    kr, kb = MATRIX[matrix]
    r, g, b = np.array(PATCHES).T/255
    y = kr*r + (1 - kr - kb)*g + kb*b
    scale = np.array([255, 255] if full else [219, 224])
    planes = y*scale[0] + 16*(not full), (b - y)/(2 - 2*kb)*scale[1] + 128, (r - y)/(2 - 2*kr)*scale[1] + 128
    with av.open(str(path), "w") as f:
        s = f.add_stream("libx264", rate=8, options={"crf": "4", "preset": "ultrafast"})
        s.height, s.width, s.pix_fmt = h, w, "yuvj420p" if full and tag == 2 else "yuv420p"
        s.codec_context.colorspace, s.codec_context.color_range = tag, 2 if full else 1
        for k in range(5):
            frame = av.VideoFrame(w, h, s.pix_fmt)
            for plane, values in zip(frame.planes, planes):
                row = np.repeat(values.round().astype(np.uint8), -(-plane.width//4))[:plane.width]
                data = np.zeros((plane.height, plane.line_size), np.uint8)
                data[:, :plane.width] = row
                plane.update(data)
            frame.pts, frame.time_base = k, Fraction(1, 8)
            frame.color_range, frame.colorspace = 2 if full else 1, tag
            f.mux(s.encode(frame))
        f.mux(s.encode())
    return path


@pytest.mark.parametrize("matrix, full, h, w, tag", [
    ("709", False, 720, 1280, 2), ("709", True, 720, 1280, 2), ("709", False, 1280, 720, 2),
    ("601", False, 480, 640, 2), ("601", True, 480, 640, 2), ("601", False, 720, 1280, 6),
    ("601", False, 720, 1280, 5),
    ("709", False, 240, 320, 1), ("709", True, 240, 320, 1), ("2020", False, 240, 320, 9)])
def test_colours(tmp_path, matrix, full, h, w, tag):
    clip = Clip.load(patches(tmp_path/"a.mp4", matrix, full, h, w, tag), num_frames=1)
    got = [(255*clip.frames[0, :, h//2, w*(2*i + 1)//8]).tolist() for i in range(4)]
    assert np.abs(np.array(got) - PATCHES).max() <= 4
    assert any("BT.709" in s for s in clip.report.notes) == (tag == 2 and h >= 720)


# ---------------------------------------------------------------- pictures that move, names, folders

STAYS = [100, 50, 200, 100, 20, 130, 100, 100]


@pytest.mark.parametrize("name", ["a.webp", "a.avif", "a.gif", "a.png", "webp_called.gif"])
def test_animated_pictures_keep_their_times(tmp_path, name):
    format = "webp" if name.startswith("webp") else None
    images = [Image.fromarray(bars(k)) for k in range(8)]
    images[0].save(tmp_path/name, format, save_all=True, append_images=images[1:], duration=STAYS, loop=0)
    clip = Clip.load(tmp_path/name, fps=50)
    starts = np.cumsum([0, *STAYS[:-1]])
    assert numbers(clip) == [int(np.abs(starts - 20*i).argmin()) for i in range(40)]
    assert preflight(tmp_path/name, fps=20).duration in (None, pytest.approx(.8))


def test_webp_transparency_is_white(tmp_path):
    images = [Image.new("RGBA", (32, 32), (0, 0, 255, 255*(k % 2))) for k in range(5)]
    images[0].save(tmp_path/"a.webp", save_all=True, append_images=images[1:], duration=125, lossless=True)
    assert [round(float(f[0].mean())) for f in Clip.load(tmp_path/"a.webp").frames] == [1, 0, 1, 0, 1]


def test_tiff_of_many_pages(tmp_path):
    images = [Image.fromarray(bars(k)) for k in range(9)]
    images[0].save(tmp_path/"a.tif", save_all=True, append_images=images[1:])
    clip = Clip.load(tmp_path/"a.tif", fps=12)
    assert numbers(clip) == list(range(9)) and clip.fps == 12
    assert any("no clock" in s for s in preflight(tmp_path/"a.tif", fps=None).notes)


@pytest.mark.parametrize("name", ["a:b.mp4", "concat:x.mp4", "http:x.mp4", "-dash.mp4", "a%03d.mp4",
                                  " sp ace. ",
                                  "día 日.mp4", "n"*251 + ".mp4", "a#b?c&d.mp4"])
def test_names(tmp_path, name, monkeypatch):
    write(tmp_path/"plain.mp4", "libx264", n=9)
    (tmp_path/"plain.mp4").rename(tmp_path/name)
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path/name): assert numbers(Clip.load(path)) == list(range(9))


def test_a_name_is_not_a_pattern(tmp_path):
    for k in range(5): Image.fromarray(bars(k)).save(tmp_path/f"x{k:03d}.png")
    Image.fromarray(bars(63)).save(tmp_path/"x%03d.png")
    assert numbers(Clip.load(tmp_path/"x%03d.png", num_frames=1)) == [63]


def test_a_name_that_no_disk_can_hold(tmp_path):
    with pytest.raises(UserError, match="There is no file"): Clip.load(tmp_path/("n"*400))


def test_folder_reads_every_kind_in_natural_order(tmp_path):
    kinds = ["png", "avif", "jpg", "webp", "bmp", "tiff", "PNG", "gif", "ppm", "jp2", "tga", "jfif"]
    for k, kind in enumerate(kinds):
        Image.fromarray(bars(k)).save(tmp_path/f"frame{k}.{kind}", {"jfif": "jpeg"}.get(kind))
    (tmp_path/".hidden.heic").touch()
    clip = Clip.load(tmp_path)
    assert numbers(clip) == list(range(12))
    assert not any("left out" in w for w in clip.report.notes + clip.report.warnings)


def test_folder_names_what_it_leaves_out(tmp_path):
    for k in range(9): Image.fromarray(bars(k)).save(tmp_path/f"f{k}.png")
    for name in ("f9.heic", "f10.heic", "f11.exr", "f12.dng", "list.json"): (tmp_path/name).touch()
    Image.fromarray(bars(0)).save(tmp_path/"f3.jpg")
    (tmp_path/"²1").mkdir()
    r = preflight(tmp_path, num_frames=9)
    assert any("f9.heic, f10.heic, f11.exr and 1 more" in w for w in r.warnings)
    assert any("list.json, ²1" in w for w in r.notes)
    assert any("more than one picture is named f3" in s for s in r.warnings)


def test_folder_of_kinds_that_are_not_read(tmp_path):
    (tmp_path/"a.heic").touch()
    with pytest.raises(UserError, match="no images in it.*a.heic"): Clip.load(tmp_path)


def ramp(dtype, top): return Image.fromarray((np.arange(16)[None].repeat(16, 0)*top/15).astype(dtype))


@pytest.mark.parametrize("image", [
    ramp(np.uint8, 255), ramp(np.uint16, 65535), ramp(np.int32, 65535), ramp(np.float32, 1),
    *(ramp(np.uint8, 255).convert(mode) for mode in ("LA", "P", "RGBA", "CMYK"))],
    ids=lambda image: image.mode)
def test_grey_of_every_kind(tmp_path, image):
    suffix = {"P": "png", "LA": "png"}.get(image.mode, "tif")
    for k in range(5): image.save(tmp_path/f"{k}.{suffix}")
    assert np.allclose(Clip.load(tmp_path).frames[0, :, 0], np.arange(16)/15, atol=.003)


def test_one_bit_pictures(tmp_path):
    for k in range(5): Image.fromarray(bars(k)).convert("1").save(tmp_path/f"{k}.tif")
    assert numbers(Clip.load(tmp_path)) == list(range(5))


@pytest.mark.parametrize("image", [ramp(np.float32, 255), ramp(np.float32, -1), ramp(np.float32, np.nan),
                                   ramp(np.int32, 10**6), ramp(np.int32, -5)])
def test_scales_that_nobody_knows_are_refused(tmp_path, image):
    for k in range(5): image.save(tmp_path/f"{k}.tif")
    with pytest.raises(UserError, match=r"'0.tif' has values from .* to .*rescale it"): Clip.load(tmp_path)


def test_a_file_of_several_pictures_in_a_folder_is_named(tmp_path):
    images = [Image.fromarray(bars(k)) for k in range(5)]
    for k in range(5): images[k].save(tmp_path/f"{k}.png")
    images[0].save(tmp_path/"5.gif", save_all=True, append_images=images[1:])
    assert any("one is used: 5.gif" in s for s in Clip.load(tmp_path).report.notes)
