"""Findings of the simulated thorax: which a film has, and what each does to the thickness maps."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from ml_core.data.phantom_body import Body, Map, Rays, smooth_noise

ZONES = {"upper": -0.38, "mid": -0.05, "lower": 0.24}


@dataclass(frozen=True, kw_only=True, slots=True)
class Disease:
    """One finding to put into a film. `side`: right, left, bilateral or empty; `severity` in (0, 1]."""

    name: str
    kind: str
    side: str = ""
    zone: str = ""
    severity: float = 0.6
    uncertain: bool = False


_RATES = {  # share of abnormal films that have it, at the bedside (AP) and standing (PA)
    "effusion": (0.30, 0.18), "pneumothorax": (0.10, 0.08), "consolidation": (0.16, 0.12), "pneumonia": (0.20, 0.22),
    "opacity": (0.18, 0.14), "atelectasis": (0.25, 0.14), "edema": (0.22, 0.08), "cardiomegaly": (0.24, 0.20),
    "nodule": (0.07, 0.15), "fracture": (0.07, 0.07), "thickening": (0.05, 0.06), "mediastinum": (0.07, 0.06),
}  # fmt: skip
_DEVICES = {
    "tube": (0.22, 0.0),
    "line": (0.34, 0.05),
    "gastric": (0.20, 0.0),
    "pacemaker": (0.10, 0.07),
    "leads": (0.45, 0.03),
}
NAMES = {
    "effusion": "Pleural Effusion", "pneumothorax": "Pneumothorax", "consolidation": "Consolidation",
    "pneumonia": "Pneumonia", "opacity": "Lung Opacity", "atelectasis": "Atelectasis", "edema": "Edema",
    "cardiomegaly": "Cardiomegaly", "nodule": "Lung Lesion", "fracture": "Fracture", "thickening": "Pleural Other",
    "mediastinum": "Enlarged Cardiomediastinum", "tube": "Support Devices", "line": "Support Devices",
    "gastric": "Support Devices", "pacemaker": "Support Devices", "leads": "Support Devices",
}  # fmt: skip
KINDS: tuple[str, ...] = tuple(NAMES)


def disease_sample(rng: np.random.Generator, *, view: str, normal: float = 0.35) -> tuple[Disease, ...]:
    """Draw what one film shows: nothing in the lungs with probability `normal`, else one to four findings."""
    column = 0 if view == "AP" else 1
    kinds: list[str] = []
    if rng.random() >= normal:
        while not kinds:
            kinds = [kind for kind, rates in _RATES.items() if rng.random() < rates[column]][:4]
    kinds += [kind for kind, rates in _DEVICES.items() if rng.random() < rates[column]]
    return tuple(disease_make(rng, kind) for kind in kinds)


def disease_make(rng: np.random.Generator, kind: str, *, side: str | None = None) -> Disease:
    """One finding of `kind` with side, zone and severity drawn; faint ones may be read as uncertain."""
    severity = float(rng.uniform(0.15, 1.0))
    uncertain = (
        kind not in ("leads", "tube", "line", "gastric", "pacemaker", "fracture")
        and severity < 0.38
        and rng.random() < 0.7
    )
    if kind in ("edema", "cardiomegaly", "mediastinum", "tube", "gastric", "leads"):
        drawn = ""
    elif kind == "effusion":
        drawn = str(rng.choice(["right", "left", "bilateral"], p=[0.38, 0.37, 0.25]))
    elif kind in ("opacity", "atelectasis"):
        drawn = str(rng.choice(["right", "left", "bilateral"], p=[0.36, 0.36, 0.28]))
    else:
        drawn = str(rng.choice(["right", "left"]))
    zone = ""
    if kind in ("consolidation", "pneumonia", "nodule"):
        zone = str(rng.choice(list(ZONES), p=[0.25, 0.25, 0.5]))
    elif kind == "opacity":
        zone = str(rng.choice(list(ZONES), p=[0.2, 0.3, 0.5]))
    elif kind == "atelectasis":
        zone = "lower"
    return Disease(name=NAMES[kind], kind=kind, side=side or drawn, zone=zone, severity=severity, uncertain=uncertain)


def body_alter(body: Body, disease: Disease, rng: np.random.Generator) -> Body:
    """The build that a finding changes: a large heart, a wide mediastinum, a raised diaphragm, a broken rib."""
    sign = -1 if disease.side == "right" else 1
    if disease.kind == "cardiomegaly":
        return replace(body, heart=0.52 + 0.17 * disease.severity)
    if disease.kind == "mediastinum":
        return replace(body, mediastinum=0.18 + 0.09 * disease.severity)
    if disease.kind == "atelectasis" and disease.severity > 0.6 and disease.side != "bilateral":
        return replace(body, raised=sign)
    if disease.kind == "fracture":
        rib, at = int(rng.integers(4, 9)), float(rng.uniform(0.3, 0.55))
        return replace(body, fracture_side=sign, fracture_rib=rib, fracture_at=at)
    return body


def disease_apply(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator) -> Map:
    """Put one finding into the maps; returns where it is, 0..1 per ray."""
    sides = {"right": (-1,), "left": (1,), "bilateral": (-1, 1), "": (0,)}[disease.side]
    seen = np.zeros_like(rays.air)
    for sign in sides:
        seen = np.maximum(seen, _APPLY[disease.kind](rays, body, disease, rng, sign))
    return seen


def _flood(rays: Rays, share: Map) -> None:
    """Replace a share of the air by water."""
    lost = rays.air * share
    rays.air -= lost
    rays.soft += lost
    rays.vessels *= 1 - 0.7 * share


def _step(distance: Map, width: float) -> Map:
    return 1 / (1 + np.exp(np.clip(-distance / width, -30, 30)))


def _effusion(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    reach = np.clip(np.abs(rays.x) / rays.lateral.clip(0.05), 0, 1.1)
    level = body.base + 0.10 - 0.42 * disease.severity - 0.13 * (reach - 0.45) - 0.10 * reach**4
    share = _step(rays.v - level, 0.02 + 0.03 * disease.severity) * (rays.side == sign)
    before = rays.air.copy()
    _flood(rays, (0.35 + 0.6 * min(1.0, disease.severity * 2)) * share)
    return ((before - rays.air) / 6).clip(0, 1)


def _pneumothorax(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    shrink = 0.05 + 0.30 * disease.severity
    top = body.apex + 0.03 + 0.45 * shrink
    edge = rays.lateral * (1 - shrink * (0.75 + 0.25 * np.cos((rays.v + 0.2) * 2)))
    inside = _step(edge - np.abs(rays.x), 0.006) * _step(rays.v - top - 0.25 * np.abs(rays.x) ** 2, 0.006)
    mine = (rays.side == sign) & (rays.lung > 0.5)
    outside = (1 - inside) * mine
    rays.extra -= 0.05 * rays.air * outside
    rays.vessels *= 1 - outside
    line = (4 * inside * (1 - inside)) * mine
    rays.soft += (0.9 * line).astype(np.float32)
    _flood(rays, (0.25 * disease.severity * inside * mine).astype(np.float32))
    return outside.astype(np.float32)


def _blob(rays: Rays, rng: np.random.Generator, *, x: float, v: float, radius: float, soft: float, rough: float) -> Map:
    noise = smooth_noise(rng, size=rays.x.shape[0], cells=12) * rough
    rho = np.sqrt(((rays.x - x) / radius) ** 2 + ((rays.v - v) / (radius * 0.9)) ** 2)
    return _step((1 - rho + 0.45 * noise).astype(np.float32), soft)


def _place(rays: Rays, disease: Disease, rng: np.random.Generator, sign: int) -> tuple[float, float]:
    v = ZONES[disease.zone] + rng.normal(0, 0.05)
    return float(sign * rng.uniform(0.28, 0.46)), float(v)


def _consolidation(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    x, v = _place(rays, disease, rng, sign)
    share = _blob(rays, rng, x=x, v=v, radius=0.14 + 0.16 * disease.severity, soft=0.13, rough=0.8)
    share *= (rays.side == sign) * (rays.lung > 0.5)
    bronchi = 1 - 0.35 * (rays.vessels > 1.0)  # air-filled bronchi stay dark
    _flood(rays, ((0.30 + 0.35 * disease.severity) * share * bronchi).astype(np.float32))
    return share


def _pneumonia(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    x, v = _place(rays, disease, rng, sign)
    share = np.zeros_like(rays.air)
    for _ in range(int(rng.integers(3, 6))):
        px, pv = x + rng.normal(0, 0.09), v + rng.normal(0, 0.09)
        share = np.maximum(share, _blob(rays, rng, x=px, v=pv, radius=rng.uniform(0.07, 0.16), soft=0.30, rough=1.0))
    share *= (rays.side == sign) * (rays.lung > 0.5)
    _flood(rays, ((0.16 + 0.32 * disease.severity) * share).astype(np.float32))
    return share


def _opacity(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    x, v = _place(rays, disease, rng, sign)
    share = _blob(rays, rng, x=x, v=v, radius=rng.uniform(0.22, 0.34), soft=0.40, rough=0.7)
    share *= (rays.side == sign) * (rays.lung > 0.5)
    _flood(rays, ((0.10 + 0.22 * disease.severity) * share).astype(np.float32))
    return share


def _edema(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    dx, dv = np.abs(rays.x) - 0.2, rays.v - 0.02
    haze = np.exp(-((dx / 0.30) ** 2) - (dv / 0.36) ** 2) * (rays.lung > 0.5)
    _flood(rays, ((0.12 + 0.28 * disease.severity) * haze).astype(np.float32))
    rays.vessels *= (1 + 1.5 * disease.severity * haze).astype(np.float32)
    lines = np.cos(rays.v * 190) ** 12 * (np.abs(rays.x) > rays.lateral - 0.10) * (rays.v > 0.0) * (rays.lung > 0.5)
    rays.soft += (0.25 * disease.severity * lines).astype(np.float32)
    return haze.astype(np.float32)


def _atelectasis(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    seen = np.zeros_like(rays.air)
    for _ in range(int(rng.integers(1, 4))):
        x, half = sign * rng.uniform(0.28, 0.42), rng.uniform(0.10, 0.2)
        v, slope = body.base - rng.uniform(0.08, 0.2), rng.normal(0, 0.2)
        off = np.abs(rays.v - v - slope * (rays.x - x)) / rng.uniform(0.010, 0.022)
        band = np.exp(-(off**2)) * _step(half - np.abs(rays.x - x), 0.03) * (rays.lung > 0.5)
        rays.soft += ((0.8 + 2.0 * disease.severity) * band).astype(np.float32)
        seen = np.maximum(seen, band)
    return seen.astype(np.float32)


def _nodule(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    x, v = _place(rays, disease, rng, sign)
    radius = 0.028 + 0.075 * disease.severity**1.5
    rho = ((rays.x - x) / radius) ** 2 + ((rays.v - v) / (radius * rng.uniform(0.85, 1.1))) ** 2
    ball = np.sqrt(np.clip(1 - rho, 0, 1)).astype(np.float32)
    rays.soft += (2 * radius * 17 * 0.85 + 0.5) * ball
    return (ball > 0).astype(np.float32)


def _thickening(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    inset = rays.lateral - np.abs(rays.x)
    width = 0.025 + 0.04 * disease.severity
    rim = _step(width - inset, 0.008) * (rays.side == sign) * (rays.lung > 0.2) * (rays.v < 0.2)
    rays.soft += ((1.0 + 1.5 * disease.severity) * rim).astype(np.float32)
    return rim.astype(np.float32)


def _heart_region(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    half = body.heart * body.lung_width
    cx, cv = half * body.heart_side + body.turn, body.base - 0.2
    return (((rays.x - cx) / (half * 1.05)) ** 2 + ((rays.v - cv) / 0.25) ** 2 < 1).astype(np.float32)


def _mediastinum_region(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    half = body.mediastinum + 0.05
    wide = np.sqrt(np.clip(1 - (rays.x / half) ** 2, 0, 1)) * _step(0.05 - rays.v, 0.08) * _step(rays.v + 0.55, 0.05)
    rays.soft += (4 * wide).astype(np.float32)
    rays.air *= 1 - 0.5 * wide.astype(np.float32)
    return (wide > 0.1).astype(np.float32)


def _fracture_region(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    ax = np.abs(rays.x)
    reach = np.clip(ax / (rays.lateral + 0.03), 0, 1)
    fall = body.rib_slope * (ax * 0.75 + 0.33 * reach**6) * 0.8
    level = (rays.v - fall + 0.93 + 0.10 * ax) / body.rib_gap
    near = (np.abs(level - body.fracture_rib) < 0.45) & (np.abs(ax - body.fracture_at) < 0.06)
    return (near & (rays.side == body.fracture_side)).astype(np.float32)


def _draw(rays: Rays, lines: list[tuple[list[tuple[float, float]], float]], *, metal: float) -> Map:
    """Draw polylines given in body coordinates (width in body units) into the metal map."""
    size = rays.x.shape[0]
    canvas = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(canvas)
    for points, width in lines:
        scaled = [((x + 1) * size, (v + 1) * size) for x, v in points]
        pen.line(scaled, fill=255, width=max(1, round(width * size * 2)), joint="curve")
    drawn = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255
    rays.metal += metal * drawn
    return drawn


def _tube(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    tip = -0.30 + rng.normal(0, 0.05)
    path = [(rng.normal(0.02, 0.02), -1.0), (-body.turn, -0.7), (-body.turn, tip)]
    left, right = [(x - 0.017, v) for x, v in path], [(x + 0.017, v) for x, v in path]
    return _draw(rays, [(left, 0.006), (right, 0.006)], metal=0.35)


def _line(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    start = (sign * rng.uniform(0.5, 0.8), rng.uniform(-0.75, -0.55)) if rng.random() < 0.6 else (sign * 0.18, -0.98)
    path = [
        start,
        (sign * 0.3, body.clavicle - 0.02),
        (sign * 0.12, -0.50),
        (-0.09, -0.38),
        (-0.085, rng.uniform(-0.15, 0.05)),
    ]
    return _draw(rays, [(_curve(path), 0.010)], metal=0.45)


def _gastric(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    path = [(0.02, -1.0), (0.03, -0.3), (0.05, 0.25), (0.2, body.base + 0.12), (0.36, body.base + 0.2)]
    return _draw(rays, [(_curve(path), 0.011)], metal=0.4)


def _pacemaker(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    x, v = sign * rng.uniform(0.45, 0.58), rng.uniform(-0.52, -0.42)
    box = [(x - 0.07, v), (x + 0.07, v)]
    lead = _curve([(x, v - 0.05), (sign * 0.25, -0.6), (-0.08, -0.42), (-0.1, 0.0), (0.18, body.base - 0.08)])
    return np.maximum(_draw(rays, [(lead, 0.008)], metal=0.5), _draw(rays, [(box, 0.13)], metal=2.0))


def _leads(rays: Rays, body: Body, disease: Disease, rng: np.random.Generator, sign: int) -> Map:
    lines = []
    for _ in range(int(rng.integers(2, 5))):
        x, v = rng.uniform(-0.65, 0.65), rng.uniform(-0.5, 0.45)
        end = (float(np.sign(x) * 1.0), float(v + rng.uniform(-0.4, 0.3)))
        lines.append((_curve([(x, v), (x + rng.normal(0, 0.1), v + rng.normal(0, 0.15)), end]), 0.006))
        lines.append(([(x - 0.015, v), (x + 0.015, v)], 0.03))
    return _draw(rays, lines, metal=0.35)


def _curve(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A smooth path through the points (chords parametrised by length, quadratic smoothing of corners)."""
    path = np.array(points, dtype=np.float64)
    for _ in range(3):  # Chaikin's corner cutting
        inner = np.stack([0.75 * path[:-1] + 0.25 * path[1:], 0.25 * path[:-1] + 0.75 * path[1:]], axis=1).reshape(
            -1, 2
        )
        path = np.concatenate([path[:1], inner, path[-1:]])
    return [(float(x), float(v)) for x, v in path]


_APPLY = {
    "effusion": _effusion, "pneumothorax": _pneumothorax, "consolidation": _consolidation, "pneumonia": _pneumonia,
    "opacity": _opacity, "atelectasis": _atelectasis, "edema": _edema, "cardiomegaly": _heart_region, "nodule": _nodule,
    "fracture": _fracture_region, "thickening": _thickening, "mediastinum": _mediastinum_region, "tube": _tube,
    "line": _line, "gastric": _gastric, "pacemaker": _pacemaker, "leads": _leads,
}  # fmt: skip
