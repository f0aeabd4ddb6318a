"""Old places of modules pass their names on, with a warning that says where they live now."""

from importlib import import_module

import pytest

from ntkit.deprecation import MOVED, REMOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_place_passes_its_names_on(old):
    new = import_module(MOVED[old])
    name = next(name for name, value in vars(new).items() if getattr(value, "__module__", "") == new.__name__)
    with pytest.warns(DeprecationWarning, match=f"{MOVED[old]}; the old place goes with ntkit {REMOVED}"):
        assert getattr(import_module(old), name) is getattr(new, name)
    with pytest.raises(AttributeError, match="nothing"):
        import_module(old).nothing  # noqa: B018
