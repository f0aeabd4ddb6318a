"""What a step of an optimizer is, as coefficients of one recursion: one file per optimizer."""

from ntkit.training.optimizers import adam as adam
from ntkit.training.optimizers import sgd as sgd
from ntkit.training.optimizers.registry import Coefficients as Coefficients
from ntkit.training.optimizers.registry import description as description
