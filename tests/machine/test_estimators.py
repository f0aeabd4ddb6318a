"""What every estimator obeys: scikit-learn's own checks."""

from sklearn.utils.estimator_checks import parametrize_with_checks

import ntkit


@parametrize_with_checks(
    [
        ntkit.KernelRidge(),
        ntkit.GaussianProcess(),
        ntkit.GradientFlow(),
        ntkit.KernelClassifier(),
        ntkit.RandomFeatures(),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
