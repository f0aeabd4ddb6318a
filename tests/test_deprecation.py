"""Old places of modules pass their names on, with a warning that says where they live now."""

from importlib import import_module

import pytest

MOVED = {
    "ntkit.infinite.checks": ("ntkit.diagnose.definiteness", "definiteness"),
    "ntkit.infinite.expressions": ("ntkit.infinite.moments.vectors", "Moved"),
    "ntkit.infinite.rules": ("ntkit.infinite.reading.rules", "register_rule"),
    "ntkit.infinite.selections": ("ntkit.infinite.layers.selections", "selected"),
    "ntkit.infinite.values": ("ntkit.infinite.reading.values", "Wide"),
}


@pytest.mark.parametrize("old", MOVED)
def test_an_old_place_passes_its_names_on(old):
    new, name = MOVED[old]
    with pytest.warns(DeprecationWarning, match=f"{name} is now {new}"):
        value = getattr(import_module(old), name)
    assert value is getattr(import_module(new), name)
    with pytest.raises(AttributeError, match="nothing"):
        import_module(old).nothing  # noqa: B018
