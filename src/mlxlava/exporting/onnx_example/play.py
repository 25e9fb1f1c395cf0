"""Play the lamp in this folder without mlxlava: writes ten seconds of it to lamp.gif.

pip install onnxruntime pillow
python play.py [SEED]
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

FRAMES_PER_STEP = 4
folder = Path(__file__).parent
step, draw = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("state_step", "generator"))
step_fps = float(step.get_modelmeta().custom_metadata_map["step_fps"])
random = np.random.default_rng(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
shape = (1, step.get_inputs()[0].shape[1])
state, frames = random.standard_normal(shape, np.float32), []
for _ in range(round(10 * step_fps)):
    path = {"state": state, "noise": random.standard_normal(shape, np.float32)}  # from this state to the next
    for part in range(FRAMES_PER_STEP):
        (between,) = step.run(None, {**path, "dt": np.full((1, 1), part / FRAMES_PER_STEP, np.float32)})
        (frame,) = draw.run(None, {"state": between})
        frames.append(Image.fromarray((frame[0] * 255 + 0.5).astype(np.uint8)))
    (state,) = step.run(None, {**path, "dt": np.ones((1, 1), np.float32)})
milliseconds = 1000 / step_fps / FRAMES_PER_STEP
frames[0].save("lamp.gif", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
