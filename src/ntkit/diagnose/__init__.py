"""Is it lazy, does it extrapolate, which labels are wrong: questions asked of kernels, networks and runs."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntkit.diagnose.alignments import Alignment as Alignment
    from ntkit.diagnose.alignments import alignment as alignment
    from ntkit.diagnose.audit import LabelAudit as LabelAudit
    from ntkit.diagnose.audit import label_audit as label_audit
    from ntkit.diagnose.comparison import Comparison as Comparison
    from ntkit.diagnose.comparison import compare as compare
    from ntkit.diagnose.diagnosis import Diagnosis as Diagnosis
    from ntkit.diagnose.diagnosis import diagnose as diagnose
    from ntkit.diagnose.extrapolation import Novelty as Novelty
    from ntkit.diagnose.extrapolation import novelty as novelty
    from ntkit.diagnose.lazy_training import Drift as Drift
    from ntkit.diagnose.lazy_training import Laziness as Laziness
    from ntkit.diagnose.lazy_training import drift as drift
    from ntkit.diagnose.lazy_training import laziness as laziness
    from ntkit.diagnose.noise_model import NoiseModel as NoiseModel
    from ntkit.diagnose.out_of_domain import Detectors as Detectors
    from ntkit.diagnose.out_of_domain import OodReport as OodReport
    from ntkit.diagnose.out_of_domain import ShiftReport as ShiftReport
    from ntkit.diagnose.out_of_domain import ood_report as ood_report
    from ntkit.diagnose.out_of_domain import shift_report as shift_report
    from ntkit.diagnose.spectra import KernelSpectrum as KernelSpectrum
    from ntkit.diagnose.spectra import spectrum as spectrum
    from ntkit.diagnose.subject import RecordedRun as RecordedRun

_ROOMS = {
    "Alignment": "alignments",
    "Comparison": "comparison",
    "Detectors": "out_of_domain",
    "Diagnosis": "diagnosis",
    "Drift": "lazy_training",
    "KernelSpectrum": "spectra",
    "LabelAudit": "audit",
    "Laziness": "lazy_training",
    "NoiseModel": "noise_model",
    "Novelty": "extrapolation",
    "OodReport": "out_of_domain",
    "RecordedRun": "subject",
    "ShiftReport": "out_of_domain",
    "alignment": "alignments",
    "compare": "comparison",
    "diagnose": "diagnosis",
    "drift": "lazy_training",
    "label_audit": "audit",
    "laziness": "lazy_training",
    "novelty": "extrapolation",
    "ood_report": "out_of_domain",
    "shift_report": "out_of_domain",
    "spectrum": "spectra",
}

__all__ = sorted(_ROOMS)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return getattr(import_module(f"ntkit.diagnose.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'ntkit.diagnose' has no attribute {name!r}")
