"""Old places of modules pass their names on, with a warning that says where they live now."""

from importlib import import_module

import pytest

from ntkit.deprecation import MOVED, REMOVED, RENAMED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_place_passes_its_names_on(old):
    new = import_module(MOVED[old])
    name = next(name for name, value in vars(new).items() if getattr(value, "__module__", "") == new.__name__)
    with pytest.warns(DeprecationWarning, match=f"{MOVED[old]}; the old place goes with ntkit {REMOVED}"):
        assert getattr(import_module(old), name) is getattr(new, name)
    with pytest.raises(AttributeError, match="nothing"):
        import_module(old).nothing  # noqa: B018


@pytest.mark.parametrize(("old", "names"), RENAMED.items())
def test_an_old_name_at_an_old_place_is_the_new_one(old, names):
    for before, now in names.items():
        with pytest.warns(DeprecationWarning, match=MOVED[old]):
            assert getattr(import_module(old), before) is getattr(import_module(MOVED[old]), now)


def test_the_names_that_the_documentation_gave_are_there():
    with pytest.warns(DeprecationWarning):
        from ntkit.infinite.checks import definiteness, operator_norm, sphere  # noqa: F401
        from ntkit.infinite.expressions import Move, Moved  # noqa: F401
        from ntkit.infinite.values import Wide  # noqa: F401
