"""What a step of an optimizer is, as coefficients of one recursion: one file per optimizer."""

from ntkit.training.optimizers import adadelta as adadelta
from ntkit.training.optimizers import adafactor as adafactor
from ntkit.training.optimizers import adagrad as adagrad
from ntkit.training.optimizers import adam as adam
from ntkit.training.optimizers import adamax as adamax
from ntkit.training.optimizers import asgd as asgd
from ntkit.training.optimizers import muon as muon
from ntkit.training.optimizers import nadam as nadam
from ntkit.training.optimizers import radam as radam
from ntkit.training.optimizers import rmsprop as rmsprop
from ntkit.training.optimizers import rprop as rprop
from ntkit.training.optimizers import sgd as sgd
from ntkit.training.optimizers.registry import Coefficients as Coefficients
from ntkit.training.optimizers.registry import Description as Description
from ntkit.training.optimizers.registry import Made as Made
from ntkit.training.optimizers.registry import description as description
from ntkit.training.optimizers.registry import register_optimizer as register_optimizer
