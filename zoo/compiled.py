"""Import torchvision where its compiled part does not load, as with a torch built for another device.

Detectors need that part; all other models need no more than the names of its operations.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

NAMES = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

spec = importlib.util.find_spec("torchvision")
if spec is not None and spec.origin is not None:
    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        for name in NAMES:
            torch.library.define(f"torchvision::{name}", SCHEMA)
