"""The shapes and rules of the study of planar topology."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from ntkit.studies.planar_shapes import (
    STROKE,
    by_depth,
    by_rows,
    crossings_per_row,
    trees,
    wide_combs,
    wide_spirals,
)
from ntkit.studies.planar_topology import _distorted, iou

RING = np.array([[c in "#o" for c in row] for row in (
    "...........",
    ".#########.",
    ".#ooooooo#.",
    ".#o#####o#.",
    ".#o#...#o#.",
    ".#o#.#.#o#.",
    ".#o#...#o#.",
    ".#o#####o#.",
    ".#ooooooo#.",
    ".#########.",
    "...........",
)])  # fmt: skip
LINES = np.array([[c == "#" for c in row] for row in (
    "...........",
    ".#########.",
    ".#.......#.",
    ".#.#####.#.",
    ".#.#...#.#.",
    ".#.#.#.#.#.",
    ".#.#...#.#.",
    ".#.#####.#.",
    ".#.......#.",
    ".#########.",
    "...........",
)])  # fmt: skip


def test_depth_fills_a_ring_and_leaves_its_hole():
    assert (by_depth(LINES[None].astype(float))[0] == RING).all()


def test_rows_are_the_parity_of_what_was_passed():
    edges = np.random.default_rng(0).random((2, 5, 7))
    expected = [[[sum(row[: j + 1] > 0.5) % 2 for j in range(7)] for row in picture] for picture in edges]
    assert by_rows(edges).tolist() == expected


def test_crossings_are_counted_on_the_rows_that_meet_the_shape():
    shape = np.zeros((1, 4, 6))
    shape[0, 1, 1:3] = 1
    shape[0, 2, [0, 3, 5]] = 1
    assert crossings_per_row(shape).tolist() == [(2 + 6) / 2]


@pytest.mark.parametrize("make", [wide_spirals, wide_combs])
def test_wide_shapes_are_drawn_with_the_stroke_of_the_training(make):
    def stroke(shapes):
        """Twice the distance from the outside, on ridges of it, in sides of the picture."""
        widths = []
        for shape in shapes:
            inside = ndimage.distance_transform_edt(ndimage.zoom(shape, 4, order=1) > 0.5) / 4
            ridge = (inside == ndimage.maximum_filter(inside, size=9)) & (inside > 0.5)
            widths.append(2 * np.median(inside[ridge]))
        return np.mean(widths) / shapes.shape[-1]

    assert abs(stroke(make(4, 64, 0)[1]) / STROKE - 1) < 0.05


def test_trees_grow_with_their_branches():
    few, many = (trees(10, 32, 0, branches)[1] for branches in (2, 20))
    assert (many > 0.5).mean() > 2 * (few > 0.5).mean()


def test_both_pictures_are_distorted_alike_and_differently_each():
    x = torch.zeros(6, 1, 32, 32)
    x[:, :, 12:20, 12:16] = 1
    edges, shapes = _distorted(x, x.clone(), torch.Generator().manual_seed(0))
    assert (iou(edges, shapes) == 1).all()
    assert float(iou(shapes[1:], shapes[:1].expand(5, -1, -1, -1)).max()) < 1
    areas = shapes.sum((1, 2, 3)) / 32
    assert float(areas.min()) > 0.5 and float(areas.max()) < 1.3  # scales from 0.95 to 1.25 of what is seen
