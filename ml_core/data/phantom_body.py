"""The simulated thorax: who is imaged and how, and the thickness of air, soft tissue and bone along every ray.

Body coordinates: x in [-1, 1] runs from image left (the patient's right) to image right, v in [-1, 1] downwards; one
unit is about 17 cm. Thicknesses are centimetres. Side -1 is the patient's right lung, +1 the left.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

Map = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """One patient in front of one detector. Lengths in body units, angles in radians, `habitus` in [0.8, 1.35]."""

    sex: str
    age: int
    view: str
    habitus: float
    lung_width: float
    apex: float
    base: float
    base_right: float
    heart: float
    heart_side: float
    mediastinum: float
    rib_slope: float
    rib_gap: float
    clavicle: float
    turn: float
    tilt: float
    zoom: float
    shift_x: float
    shift_v: float
    texture: float
    raised: int = 0  # the side whose diaphragm volume loss has raised (0: none)
    fracture_side: int = 0
    fracture_rib: int = 0
    fracture_at: float = 0.0


@dataclass(slots=True)
class Rays:
    """Maps of one film: coordinates, thicknesses and the fields that findings are placed in."""

    x: Map
    v: Map
    side: Map  # -1 or 1: which half of the body
    lateral: Map  # half-width of the chest cage at this height
    dome: Map  # height of the diaphragm in this column
    lung: Map  # cm of aerated lung before any finding
    air: Map  # cm of aerated lung
    soft: Map  # cm of soft tissue and water
    bone: Map
    metal: Map
    vessels: Map  # signed texture, about unit variance inside the lungs
    extra: Map  # attenuation added directly (negative: pleural air)


def body_sample(rng: np.random.Generator, *, view: str | None = None, sex: str | None = None) -> Body:
    """Draw a patient and a way of imaging; bedside (AP) films are less inspired, larger and less straight."""
    chosen = view or ("PA" if rng.random() < 0.55 else "AP")
    bedside = chosen == "AP"
    base = rng.normal(0.42 if bedside else 0.52, 0.05)
    return Body(
        sex=sex or ("F" if rng.random() < 0.5 else "M"),
        age=int(np.clip(rng.normal(62 if bedside else 54, 16), 18, 95)),
        view=chosen,
        habitus=float(np.clip(rng.normal(1.02, 0.12), 0.8, 1.35)),
        lung_width=float(np.clip(rng.normal(0.70, 0.045), 0.58, 0.82)),
        apex=float(rng.normal(-0.76, 0.04)),
        base=float(np.clip(base, 0.28, 0.62)),
        base_right=float(np.clip(rng.normal(0.05, 0.02), 0.0, 0.1)),
        heart=float(rng.normal(0.45 if bedside else 0.42, 0.025)),
        heart_side=float(np.clip(rng.normal(0.3, 0.05), 0.18, 0.42)),
        mediastinum=float(np.clip(rng.normal(0.12 if bedside else 0.105, 0.012), 0.08, 0.15)),
        rib_slope=float(rng.normal(0.42, 0.06)),
        rib_gap=float(rng.normal(0.128, 0.006)),
        clavicle=float(rng.normal(-0.66 if bedside else -0.60, 0.03)),
        turn=float(rng.normal(0, 0.04 if bedside else 0.02)),
        tilt=float(rng.normal(0, 3.5 if bedside else 1.5)) * pi / 180,
        zoom=float(np.clip(rng.normal(1.0, 0.06), 0.86, 1.15)),
        shift_x=float(rng.normal(0, 0.04)),
        shift_v=float(rng.normal(0, 0.05)),
        texture=float(np.clip(rng.normal(1.0, 0.25), 0.5, 1.8)),
    )


def rays_trace(body: Body, rng: np.random.Generator, *, size: int) -> Rays:
    """Thickness maps of a healthy thorax of this build, size x size."""
    x, v = _coordinates(body, size)
    ax = np.abs(x)
    side = np.where(x < 0, np.float32(-1), np.float32(1))
    lateral = _lateral(body, v)
    dome = _dome(body, ax, side)
    inside = _step(lateral - ax, 0.012) * _step(dome - v, 0.012) * _step(v - body.apex, 0.02)
    medial = body.mediastinum + 0.05 * np.exp(-(((v + 0.02) / 0.16) ** 2)) + 0.03 * np.clip(-0.35 - v, 0, 0.3)
    cage = np.sqrt(np.clip(1 - (ax / (lateral + 1e-4)) ** 2, 0, 1))
    depth = 17.0 * (0.55 + 0.45 * np.clip((v - body.apex) / 0.5, 0, 1))
    lung = (inside * _step(ax - medial, 0.018) * (0.12 + 0.88 * cage) * depth).astype(np.float32)
    heart = _heart(body, x, v)
    lung *= 1 - 0.82 * heart
    vessels = _vessels(body, rng, x, v, side)
    soft = _soft(body, x, v, ax)
    soft += 2.6 * heart * _step(dome + 0.03 - v, 0.03)
    bone = _ribs(body, x, v, ax, side, lateral) + _spine(body, x, v) + _shoulders(body, x, v, ax)
    soft -= 2.2 * np.exp(-(((x + body.turn) / 0.045) ** 2)) * _step(-0.12 - v, 0.04) * _step(v + 1.05, 0.02)  # trachea
    rays = Rays(
        x=x, v=v, side=side, lateral=lateral, dome=dome, lung=lung, air=lung.copy(), soft=soft, bone=bone,
        metal=np.zeros_like(x), vessels=vessels, extra=np.zeros_like(x),
    )  # fmt: skip
    _stomach(rays, rng)
    return rays


def smooth_noise(rng: np.random.Generator, *, size: int, cells: int) -> Map:
    """Smooth noise of about unit variance with `cells` bumps across, size x size."""
    coarse = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    steps = np.linspace(1, cells + 1, size, dtype=np.float32)
    low = np.floor(steps).astype(int)
    frac = steps - low
    frac = frac * frac * (3 - 2 * frac)
    rows = coarse[low] * (1 - frac)[:, None] + coarse[low + 1] * frac[:, None]
    return np.ascontiguousarray(rows[:, low] * (1 - frac) + rows[:, low + 1] * frac) * np.float32(1.5)


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Map, Map]:
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    return np.broadcast_to(line, (size, size)), np.broadcast_to(line[:, None], (size, size))


def _coordinates(body: Body, size: int) -> tuple[Map, Map]:
    gx, gv = _grid(size)
    c, s = cos(body.tilt) / body.zoom, sin(body.tilt) / body.zoom
    x = c * (gx - body.shift_x) + s * (gv - body.shift_v)
    v = -s * (gx - body.shift_x) + c * (gv - body.shift_v)
    return x.astype(np.float32), v.astype(np.float32)


def _step(distance: Map, width: float) -> Map:
    return 1 / (1 + np.exp(np.clip(-distance / width, -30, 30)))


def _lateral(body: Body, v: Map) -> Map:
    s = np.clip((v - body.apex) / (body.base + 0.25 - body.apex), 0, 1)
    return (body.lung_width * np.sqrt(np.clip(1 - (1 - s) ** 3.0, 1e-6, 1)) * (0.94 + 0.06 * s)).astype(np.float32)


def _dome(body: Body, ax: Map, side: Map) -> Map:
    top = np.where(side < 0, body.base - body.base_right, body.base)
    if body.raised:
        top = np.where(side == body.raised, top - 0.1, top)
    return (top - 0.1 + 1.25 * np.clip(ax - 0.27, 0, 1) ** 2 + 0.5 * np.clip(0.27 - ax, 0, 1) ** 2).astype(np.float32)


def _heart(body: Body, x: Map, v: Map) -> Map:
    half = body.heart * body.lung_width
    cx, cv = half * body.heart_side + body.turn, body.base - 0.22
    tilt = 0.5
    dx, dv = x - cx, v - cv
    along, across = dx * cos(tilt) + dv * sin(tilt), -dx * sin(tilt) + dv * cos(tilt)
    main = 1 - (along / (half * 1.06)) ** 2 - (across / (half * 0.80)) ** 2
    knob = 1 - ((x - 0.1 - body.turn) / 0.075) ** 2 - ((v + 0.36) / 0.085) ** 2
    trunk = 1 - ((x - 0.085 - body.turn) / 0.085) ** 2 - ((v + 0.15) / 0.16) ** 2
    atrium = 1 - ((x + half * 0.42 - body.turn) / (half * 0.42)) ** 2 - ((v - cv) / 0.22) ** 2
    parts = [_step(part, 0.05) * scale for part, scale in ((main, 1.0), (knob, 0.65), (trunk, 0.7), (atrium, 0.75))]
    return np.maximum.reduce(parts).astype(np.float32)


def _soft(body: Body, x: Map, v: Map, ax: Map) -> Map:
    shoulder = _step(v + 0.74, 0.045)
    half = (
        0.19
        + shoulder * (0.64 + 0.24 * body.habitus - 0.10 * np.clip(v, 0, 1))
        + 0.25 * _step(-0.45 - v, 0.08) * shoulder
    )
    outline = np.sqrt(np.clip(1 - (ax / half) ** 2, 0, 1))
    depth = (9.0 + shoulder * 12.5 * body.habitus) * (1 + 0.12 * np.clip(v - 0.3, 0, 1))
    soft = outline * depth * _step(half - ax, 0.01)
    if body.sex == "F":
        for sign in (-1, 1):
            rho = ((x - sign * 0.42) / 0.33) ** 2 + ((v - 0.25) / 0.27) ** 2
            soft += 3.2 * body.habitus * np.sqrt(np.clip(1 - rho, 0, 1)) * (0.7 + 0.3 * _step(v - 0.25, 0.1))
    return soft.astype(np.float32)


def _ribs(body: Body, x: Map, v: Map, ax: Map, side: Map, lateral: Map) -> Map:
    cage = _step(lateral + 0.035 - ax, 0.012) * _step(ax - 0.05, 0.02)
    reach = np.clip(ax / (lateral + 0.03), 0, 1)
    fall = body.rib_slope * (ax * 0.75 + 0.33 * reach**6) * 0.8
    bone = np.zeros_like(x)
    # Posterior ribs run from the spine outwards and down; the pattern repeats every rib_gap.
    level = (v - fall + 0.93 + 0.10 * ax) / body.rib_gap
    if body.fracture_side:
        broken = (np.round(level) == body.fracture_rib) & (side == body.fracture_side) & (ax > body.fracture_at)
        level = level + np.where(broken, np.float32(0.26), np.float32(0))
        gap = np.exp(-(((ax - body.fracture_at) / 0.012) ** 2)) * (np.round(level) == body.fracture_rib)
        gap *= side == body.fracture_side
    phase = np.abs(level - np.round(level))
    edge = reach**8
    band = _step(0.20 - phase, 0.03) * (0.55 + 0.5 * np.exp(-(((phase - 0.17) / 0.05) ** 2)) + 0.8 * edge)
    valid = (level > 0.5) & (level < 10.5)
    band = band * valid
    if body.fracture_side:
        band = band * (1 - 0.95 * gap)
    bone += 1.0 * band * cage
    # Anterior ribs: fainter, running the other way, not to the midline.
    level = (v + 0.35 * (ax - 0.2) + 0.55 * (lateral - ax).clip(0) + 0.62) / (body.rib_gap * 1.15)
    phase = np.abs(level - np.round(level))
    valid = (level > 0.5) & (level < 6.5)
    bone += 0.45 * _step(0.18 - phase, 0.05) * valid * cage * _step(ax - 0.26, 0.03)
    return bone.astype(np.float32)


def _spine(body: Body, x: Map, v: Map) -> Map:
    column = _step(0.088 - np.abs(x - 0.3 * body.turn), 0.01)
    discs = 0.72 + 0.28 * np.cos(v * (2 * pi / 0.15)) ** 2
    return (1.7 * column * discs).astype(np.float32)


def _shoulders(body: Body, x: Map, v: Map, ax: Map) -> Map:
    line = body.clavicle - 0.25 * (ax - 0.1) + 0.16 * np.sin((ax - 0.1) * 4.2) * 0.5
    clavicle = np.exp(-(((v - line) / 0.03) ** 4)) * _step(ax - 0.075, 0.012) * _step(0.66 - ax, 0.02)
    reach = 0.80 if body.view == "PA" else 0.66
    blade = _step(0.13 - np.abs(ax - reach - 0.2 * (v + 0.35)), 0.015) * _step(0.27 - np.abs(v + 0.33), 0.03)
    head = np.sqrt(np.clip(1 - ((ax - 0.93) / 0.13) ** 2 - ((v + 0.55) / 0.14) ** 2, 0, 1))
    return (1.0 * clavicle + 0.5 * blade + 2.0 * head).astype(np.float32)


def _vessels(body: Body, rng: np.random.Generator, x: Map, v: Map, side: Map) -> Map:
    """Branching markings: noise stretched along the rays out of each hilum, fading outwards, and fine mottle."""
    dx, dv = np.abs(x) - 0.15, v + 0.02
    radius = np.sqrt(dx * dx + dv * dv) + 1e-3
    angle = np.arctan2(dv, dx) * side
    noise = gaussian_filter(rng.standard_normal((48, 256)).astype(np.float32), (2.4, 1.3), mode="wrap")
    noise /= noise.std()
    across = angle / (2 * pi) * 255 + 127.5 + np.where(side > 0, np.float32(64), np.float32(0)) + 9 * radius
    streaks = map_coordinates(noise, [radius * 34, across], order=1, mode="grid-wrap")
    mottle = smooth_noise(rng, size=x.shape[0], cells=54)
    hilum = np.exp(-((dx / 0.085) ** 2) - (((dv + 0.01) / 0.17) ** 2))
    fade = np.exp(-radius / 0.42)
    return (body.texture * (fade * np.clip(streaks, -0.6, 3) * 1.5 + 0.22 * mottle) + 2.6 * hilum).astype(np.float32)


def _stomach(rays: Rays, rng: np.random.Generator) -> None:
    if rng.random() < 0.6:
        cx, radius = rng.normal(0.36, 0.05), rng.uniform(0.06, 0.13)
        below = rays.v - rays.dome - 0.05
        bubble = 1 - ((rays.x - cx) / (radius * 1.4)) ** 2 - ((below - radius * 0.8) / radius) ** 2
        rays.soft -= (4.5 * np.sqrt(np.clip(bubble, 0, 1)) * (rays.side > 0)).astype(np.float32)
