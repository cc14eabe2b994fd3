"""From the painted street to a camera frame: exposure, colour, lens and noise."""

from __future__ import annotations

import cv2
import numpy as np

from edgeseg.scene.camera import Camera
from edgeseg.scene.noise import Field, Noise
from edgeseg.scene.stage import Stage
from edgeseg.types import Image, Size


def draw_sky(stage: Stage, rng: np.random.Generator) -> None:
    """A gradient from zenith to skyline, and clouds that draw together towards the horizon."""
    light = stage.light
    rows = int(stage.camera.horizon * stage.camera.size[0]) + 2
    height, width = stage.camera.size
    up = (1 - (np.arange(rows, dtype=np.float32) + 0.5) / rows)[:, None]
    across = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / height)[None, :]
    far = 1 / (np.float32(0.25) + up)
    shift = np.float32(rng.uniform(0, 100))
    layers = stage.noise.sample(across * far + shift, far * np.float32(1.6) + shift, 6.0)
    cover = np.clip(layers * 0.45 + np.float32(light.cover - 0.4), 0, 1)
    glow = 1 + 0.06 * across * np.float32(np.sign(light.sun[0]))
    for channel in range(3):
        blue = light.skyline[channel] + (light.zenith[channel] - light.skyline[channel]) * up
        stage.image[:rows, :, channel] = np.clip((blue + (light.cloud[channel] - blue) * cover) * glow, 0, 255)


def develop(image: Image, camera: Camera, size: Size, noise: Noise, rng: np.random.Generator) -> Image:
    """The frame of `size` a small video camera makes of the painted `image`."""
    height, width = size
    exposure, contrast = rng.uniform(0.95, 1.4), rng.uniform(0.9, 1.3)
    warmth, tint = rng.normal(0, 0.025), rng.normal(0, 0.012)
    falloff, glare = rng.uniform(0.0, 0.25), rng.uniform(0.02, 0.08)
    softness, grain = rng.uniform(0.0008, 0.0018), rng.uniform(1.0, 4.0)

    if camera.size != size:
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    frame: Field = image.astype(np.float32)
    small = cv2.resize(image, (48, 36), interpolation=cv2.INTER_AREA).astype(np.float32)
    veil = cv2.resize(cv2.GaussianBlur(small, (0, 0), 4), (width, height), interpolation=cv2.INTER_LINEAR)
    frame = np.asarray(cv2.addWeighted(frame, 1 - glare, veil, glare, 0), np.float32)
    v = ((np.arange(height, dtype=np.float32) + 0.5) / np.float32(height) - 0.5)[:, None]
    u = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / np.float32(height))[None, :]
    gain: Field = np.float32(exposure) * (1 - np.float32(falloff) * (u * u + v * v))
    gain = gain * (1 + np.float32(0.02) * noise.sample(u, v, 2.3))
    frame *= gain[..., None]
    frame *= np.array([1 + warmth, 1 + tint, 1 - warmth], np.float32)
    frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), max(softness * height, 0.3)), np.float32)
    # a film-like curve: dark tones fall, bright ones burn out
    tone = np.linspace(0, 1, 1024) ** contrast
    curve = np.clip(tone * 1.12, 0, 1) * 255
    index = np.clip(frame * np.float32(1023 / 255), 0, 1023).astype(np.uint16)
    coarse: Field = rng.standard_normal((height // 2 + 1, width // 2 + 1), np.float32)
    fine: Field = rng.standard_normal((height, width), np.float32)
    speckle = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) + np.float32(0.7) * fine
    toned = curve.astype(np.float32)[index] + np.float32(grain * 0.8) * speckle[..., None]
    return _soften_color(np.clip(np.rint(toned), 0, 255).astype(np.uint8))


def _soften_color(frame: Image) -> Image:
    """Colour at half the resolution of brightness, as video and JPEG store it."""
    height, width = frame.shape[:2]
    ycc = cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb)
    half = cv2.resize(ycc[..., 1:], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
    ycc[..., 1:] = cv2.resize(half, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.cvtColor(ycc, cv2.COLOR_YCrCb2RGB), np.uint8)
