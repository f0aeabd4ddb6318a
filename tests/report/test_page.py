import re
from dataclasses import replace

import numpy as np
import pytest

from ntkit.report.page import TERMS, Curve, Kernels, Page, Push, PushSide, Query, render

EVIL = "<script>alert('x')</script>\"'&"


@pytest.fixture
def page():
    push = Push(name="sample 3", label="cat", contribution=1.5, picture=np.eye(4))
    query = Query(
        name="query 1",
        verdict="right",
        output="cat",
        truth="cat",
        terms=dict(zip(TERMS, (0.25, 1.0, -0.5, 0.0, 0.0, 1e-16, -2e-12, 0.75), strict=True)),
        towards=PushSide((push,), total=3.0, count=2),
        against=PushSide((), total=0.0, count=0),
        probabilities=(("cat", 0.75), ("dog", 0.25)),
        by_label=(("cat", 3.0), ("dog", -2.0)),
        picture=np.zeros((4, 4)),
    )
    values = np.array([4.0, 1.0, 0.0, -1e-17])
    kernels = Kernels(np.eye(4), np.ones((4, 4)), ("cat", "cat", "dog", "dog"), 1.0, 2.0, values, values)
    return Page(
        title="A title",
        lead="A lead.",
        facts=(("accuracy", "93 %"),),
        queries=(query,),
        residual=2e-12,
        relative_residual=1e-12,
        tolerance=1e-8,
        steps=7,
        unit="logits",
        curves=(Curve("training", "loss", (2.0, 1.0)), Curve("held out", "accuracy", (0.1, 0.9))),
        kernels=kernels,
        footer="versions",
    )


def assert_self_contained(html):
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", html)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|<link|<script|url\((?!#)", html)


def test_the_page_loads_nothing(page):
    assert_self_contained(render(page))


def test_every_link_and_id_has_one_target(page):
    html = render(page)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]+)"', html) + re.findall(r"url\(#([^)]+)\)", html)
    assert set(targets) <= set(ids)


def test_the_page_says_its_numbers_with_their_unit(page):
    html = render(page)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))
    assert "Largest residual: 2.0e−12 logits" in text
    assert "these 1 make 50 % of the +3.0 logits from 2 samples" in text
    for number in ("+0.250", "+1.000", "−0.500", "1.0e−16", "−2.0e−12", "+0.750"):
        assert number in text
    assert "not a counterfactual" in text


def test_text_is_escaped_everywhere(page):
    query = page.queries[0]
    push = replace(query.towards.shown[0], name=EVIL, label=EVIL)
    bare = replace(push, picture=None)
    query = replace(
        query,
        name=EVIL,
        verdict=EVIL,
        output=EVIL,
        truth=EVIL,
        towards=PushSide((push, bare), 3.0, 2),
        probabilities=((EVIL, 1.0),),
        by_label=((EVIL, 1.0),),
    )
    kernels = replace(page.kernels, labels=(EVIL,) * 4)
    curves = (Curve(EVIL, EVIL, (2.0, 1.0)),)
    page = replace(
        page, title=EVIL, lead=EVIL, facts=((EVIL, EVIL),), queries=(query,), unit=EVIL, footer=EVIL
    )
    html = render(replace(page, kernels=kernels, curves=curves))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert_self_contained(html)


def test_pictures_probabilities_curves_and_kernels_may_be_missing(page):
    query = replace(page.queries[0], picture=None, probabilities=(), by_label=(), truth="")
    html = render(replace(page, queries=(query,), curves=(), kernels=None))
    assert "query 1" in html
    assert "<svg" not in html
