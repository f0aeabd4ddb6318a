"""What a network must be: weights that can be differentiated, and a function of one sample."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm

from ntkit.errors import BadTypeError, BadValueError, NotPerSampleError

Weights = Mapping[str, Tensor]


def check_names(weights: Weights, known: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not named as the parameters of a module are."""
    if not isinstance(weights, Mapping):
        raise BadTypeError(f"weights is a {type(weights).__name__}, expected a dict of tensors by name.")
    if set(weights) != set(known):
        raise BadValueError(
            f"weights must name the parameters of the module; unknown: "
            f"{sorted(map(str, set(weights) - set(known)))}, missing: {sorted(set(known) - set(weights))}."
        )


def check_weights(weights: Weights, counted: Weights) -> None:
    """Refuse weights on several devices, or of which those that count are not of one floating dtype."""
    if not isinstance(weights, Mapping):
        raise BadTypeError(f"weights is a {type(weights).__name__}, expected a dict of tensors by name.")
    if not weights:
        raise BadValueError("The network has no parameters, so it has no tangent kernel.")
    for name, w in weights.items():
        if not isinstance(w, Tensor) or is_lazy(w):
            raise BadTypeError(
                f"Weight {name!r} is a {type(w).__name__}, expected an initialized tensor; run a lazy "
                f"module once before giving it to ntkit."
            )
    for name in counted:
        w = weights[name]
        if w.is_inference():
            raise BadValueError(
                f"Weight {name!r} was made in inference mode, which autograd cannot differentiate. Make the "
                f"network, or load its weights, outside of torch.inference_mode()."
            )
        if not w.is_floating_point() and not w.is_complex():
            raise BadValueError(
                f"Weight {name!r} has dtype {w.dtype}; tangent kernels need floating-point weights. Turn it "
                f"into a buffer, or leave it out of `weights`."
            )
    seen = {"device": {str(w.device) for w in weights.values()}}
    seen["dtype"] = {str(weights[name].dtype.to_real()) for name in counted}
    for what, values in seen.items():
        if len(values) > 1:
            raise BadValueError(
                f"The weights have mixed {what}s {sorted(values)}; bring them to one with model.to(...)."
            )


def refuse_stateful(module: nn.Module | None) -> None:
    """Refuse modules that have no function of a single sample as they are set now, by name."""
    for name, m in module.named_modules() if module is not None else ():
        where = f"{name or 'the model'} ({type(m).__name__})"
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            if m.training or m.running_mean is None:
                why = "is in training mode" if m.training else "keeps no running statistics"
                raise NotPerSampleError(
                    f"{where} {why}: its output for one sample depends on the others of the batch. "
                    f"Call model.eval(), with track_running_stats=True."
                )
        elif m.training and _iterates(m):
            raise NotPerSampleError(
                f"{where} is a spectral norm in training mode: its power iteration changes the weights at "
                f"each call. Call model.eval()."
            )
        elif isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0:
            raise NotPerSampleError(
                f"{where} drops at random (p={m.p}) in training mode: the network is not a function of "
                f"its input. Call model.eval(), or set p=0."
            )


def _iterates(m: nn.Module) -> bool:
    """Return whether a module holds a spectral norm, as a parametrization or as torch's older hook."""
    hooks = m._forward_pre_hooks.values()
    return isinstance(m, parametrizations._SpectralNorm) or any(isinstance(h, SpectralNorm) for h in hooks)
