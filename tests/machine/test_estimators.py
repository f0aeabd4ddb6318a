"""What every estimator obeys: scikit-learn's own checks."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

import ntkit

ESTIMATORS = [
    ntkit.KernelRidge(),
    ntkit.KernelRidge(None, 1.0),
    ntkit.GaussianProcess(),
    ntkit.GradientFlow(),
    ntkit.KernelClassifier(),
    ntkit.KernelClassifier(None, "cross_entropy", alpha=0.3),
    ntkit.RandomFeatures(m=100),
]


@pytest.mark.filterwarnings("ignore:The evidence still grows")  # scikit-learn's targets are drawn at random
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
