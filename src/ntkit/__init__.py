"""Any PyTorch network as its kernel machine.

The public names of ntkit, and nothing else. They are imported when first used (PEP 562), so that
``import ntkit`` and ``ntkit --help`` load neither torch nor matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ntkit.deprecation import keep_old_places
from ntkit.version import __version__ as __version__

if TYPE_CHECKING:
    from ntkit import diagnose as diagnose
    from ntkit import report as report
    from ntkit import testing as testing
    from ntkit.compute.tiled.executors import JoblibExecutor as JoblibExecutor
    from ntkit.compute.tiled.kernel import TiledKernel as TiledKernel
    from ntkit.compute.tiled.ray_executor import RayExecutor as RayExecutor
    from ntkit.errors import NoRuleError as NoRuleError
    from ntkit.errors import NtkitError as NtkitError
    from ntkit.finite.conjugate import ConjugateKernel as ConjugateKernel
    from ntkit.finite.empirical import EmpiricalNTK as EmpiricalNTK
    from ntkit.finite.linearize import linearize as linearize
    from ntkit.finite.linearize import taylor as taylor
    from ntkit.finite.parametrize import ntk_parametrize as ntk_parametrize
    from ntkit.finite.rules import register_rule as register_rule
    from ntkit.infinite.by_hand import TensorProgram as TensorProgram
    from ntkit.infinite.duals.dual import register_dual as register_dual
    from ntkit.infinite.duals.of import dual as dual
    from ntkit.infinite.limit import infinite_width as infinite_width
    from ntkit.infinite.monte_carlo import monte_carlo as monte_carlo
    from ntkit.infinite.reading.rules import register_limit_rule as register_limit_rule
    from ntkit.machine.classifier import KernelClassifier as KernelClassifier
    from ntkit.machine.features import RandomFeatures as RandomFeatures
    from ntkit.machine.flow import GradientFlow as GradientFlow
    from ntkit.machine.gaussian import GaussianProcess as GaussianProcess
    from ntkit.machine.large.feature_ridge import FeatureRidge as FeatureRidge
    from ntkit.machine.large.nystrom_features import NystromFeatures as NystromFeatures
    from ntkit.machine.ridge import KernelRidge as KernelRidge
    from ntkit.training.accounts.account import Account as Account
    from ntkit.training.accounts.account import account as account
    from ntkit.training.accounts.path_kernel import PathKernel as PathKernel
    from ntkit.training.accounts.watch import watch as watch
    from ntkit.training.counterfactuals.counterfactual import Counterfactual as Counterfactual
    from ntkit.training.counterfactuals.counterfactual import counterfactual as counterfactual
    from ntkit.training.counterfactuals.retrain import retrain as retrain
    from ntkit.training.loops.loader import indexed as indexed
    from ntkit.training.optimizers.registry import register_optimizer as register_optimizer
    from ntkit.training.recording.record import record as record

keep_old_places()

_ROOMS = {
    "Account": "ntkit.training.accounts.account",
    "ConjugateKernel": "ntkit.finite.conjugate",
    "Counterfactual": "ntkit.training.counterfactuals.counterfactual",
    "EmpiricalNTK": "ntkit.finite.empirical",
    "FeatureRidge": "ntkit.machine.large.feature_ridge",
    "GaussianProcess": "ntkit.machine.gaussian",
    "GradientFlow": "ntkit.machine.flow",
    "JoblibExecutor": "ntkit.compute.tiled.executors",
    "KernelClassifier": "ntkit.machine.classifier",
    "KernelRidge": "ntkit.machine.ridge",
    "NoRuleError": "ntkit.errors",
    "NystromFeatures": "ntkit.machine.large.nystrom_features",
    "NtkitError": "ntkit.errors",
    "PathKernel": "ntkit.training.accounts.path_kernel",
    "RandomFeatures": "ntkit.machine.features",
    "TiledKernel": "ntkit.compute.tiled.kernel",
    "RayExecutor": "ntkit.compute.tiled.ray_executor",
    "TensorProgram": "ntkit.infinite.by_hand",
    "account": "ntkit.training.accounts.account",
    "counterfactual": "ntkit.training.counterfactuals.counterfactual",
    "dual": "ntkit.infinite.duals.of",
    "indexed": "ntkit.training.loops.loader",
    "infinite_width": "ntkit.infinite.limit",
    "linearize": "ntkit.finite.linearize",
    "monte_carlo": "ntkit.infinite.monte_carlo",
    "ntk_parametrize": "ntkit.finite.parametrize",
    "record": "ntkit.training.recording.record",
    "register_dual": "ntkit.infinite.duals.dual",
    "register_limit_rule": "ntkit.infinite.reading.rules",
    "register_rule": "ntkit.finite.rules",
    "register_optimizer": "ntkit.training.optimizers.registry",
    "retrain": "ntkit.training.counterfactuals.retrain",
    "taylor": "ntkit.finite.linearize",
    "watch": "ntkit.training.accounts.watch",
}

__all__ = [*sorted(_ROOMS), "__version__", "diagnose", "report", "testing"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    if name in ("diagnose", "report", "testing"):
        return import_module(f"ntkit.{name}")
    raise AttributeError(f"module 'ntkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, "diagnose", "report", "testing"})
