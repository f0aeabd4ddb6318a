"""The page as it is explored, in a real browser: Debian's Chromium, if it is there."""

import base64
import json
import re
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import ntkit
from ntkit.errors import NtkitError
from ntkit.report.account_page import account_page
from ntkit.report.page import render
from ntkit.studies.catalog import PAPERS, about, configure, places
from ntkit.studies.index import IndexEntry, render_index
from ntkit.studies.runner import run_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NAMES = ["malignant, and a name as long as names of classes are", "<b>benign</b> & quiet"]
N, Q = 60, 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An account and a counterfactual of one run, on a table."""
    torch.manual_seed(0)
    x = torch.randn(N + Q, 4, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
    optimizer, folder = torch.optim.AdamW(net.parameters(), 0.05), tmp_path_factory.mktemp("runs") / "run"
    loss = torch.nn.functional.cross_entropy
    with ntkit.record(folder, net, optimizer, train=(x[:N], y[:N])) as run:
        for _ in range(40):
            batch = torch.randperm(N)[:20]
            run.batch(batch)
            optimizer.zero_grad()
            loss(net(x[batch]), y[batch]).backward()
            optimizer.step()
    ask = {"train": (x[:N], y[:N]), "queries": x[N:]}
    account = ntkit.account(folder, net, loss, **ask, tol=1e-8)
    options = {"labels": y[:N], "classes": NAMES, "train": x[:N], "queries": x[N:], "truth": y[N:]}
    options |= {"feature_names": ["age", "size", "<i>shape</i>", "grade"]}
    return account, ntkit.counterfactual(folder, net, loss, **ask), options


@pytest.fixture(scope="module")
def browser():
    """A browser, if there is one."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(made, browser, tmp_path_factory):
    """The page in a browser, and what went wrong in it."""
    account, counterfactual, options = made
    file = tmp_path_factory.mktemp("page") / "report.html"
    ntkit.report.explain(account, file, counterfactual=counterfactual, **options)
    opened = browser.new_page(viewport={"width": 1000, "height": 900})
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: errors.append(request.url) if request.url[:4] == "http" else None)
    opened.address = file.as_uri()
    yield opened
    assert not errors


def fresh(page, hash=""):
    page.goto("about:blank")
    page.goto(f"{page.address}#{hash}")
    page.wait_for_selector("#explorer:not([hidden])")
    return page


def number(text):
    return float(re.search(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", text.replace("−", "-"))[0])


def unpacked(html):
    """Read the arrays of a page again."""
    meta = json.loads(re.search(r'<script type="application/json" id="x-meta">(.*?)</script>', html, re.S)[1])
    raw = np.frombuffer(zlib.decompress(base64.b64decode(meta["bytes"])), np.uint8)
    found = {}
    for name, place in meta["arrays"].items():
        size = int(np.prod(place["shape"]))
        low, high = raw[place["at"] :][:size], raw[place["at"] + size :][:size]
        whole = (low.astype(np.uint16) | high.astype(np.uint16) << 8).view(np.int16).reshape(place["shape"])
        found[name] = whole * np.reshape(place["scale"], (*place["shape"][:-1], 1))
    return meta, found


def test_the_page_holds_all_contributions_to_sixteen_bits(made):
    account, counterfactual, options = made
    meta, found = unpacked(render(account_page(account, counterfactual=counterfactual, **options)))
    for name, truth in (("contributions", account.contributions), ("effects", counterfactual.effects)):
        scale = np.abs(truth.numpy()).max(-1, keepdims=True)
        assert (np.abs(found[name] - truth.numpy()) <= scale / 65000).all()
    assert np.allclose(found["over_time"].sum(-1), account.contributions.sum(-1), atol=1e-2)
    assert meta["outputs"][0] == NAMES and len(meta["samples"]) == N


def test_many_samples_are_listed_in_part_and_that_is_told(made):
    account, _, options = made
    html = render(account_page(account, **options, listed=25))
    meta, found = unpacked(html)
    assert found["contributions"].shape[-1] == len(meta["samples"]) == 25 and meta["of"] == N
    kept = {int(name.split()[1]) for name in meta["samples"]}
    largest = account.contributions.abs().amax((0, 1)).argsort(descending=True)[:25].tolist()
    assert kept == set(largest)


def test_a_counterfactual_of_something_else_is_refused(made):
    account, counterfactual, options = made
    with pytest.raises(NtkitError, match=r"same run, queries and target"):
        account_page(
            account, counterfactual=replace(counterfactual, prediction=-account.prediction), **options
        )
    with pytest.raises(NtkitError, match=r"what ntkit\.counterfactual returns"):
        account_page(account, counterfactual=account, **options)
    with pytest.raises(NtkitError, match=r"feature_names has 1 entries"):
        account_page(account, **{**options, "feature_names": ["a"]})


def test_the_first_screen_is_the_account(made, page):
    account, _, _ = made
    fresh(page)
    output = int(account.prediction[0].argmax())
    pushes = account.contributions[0, output]
    sentence = page.inner_text("#x-sentence")
    assert sentence.startswith(NAMES[output])
    assert (
        f"from {int((pushes > 0).sum())} samples" in sentence
        and f"from {int((pushes < 0).sum())}." in sentence
    )
    drawn = [number(t) for t in page.locator("#x-waterfall text.value").all_text_contents()]
    assert sum(drawn[:-1]) == pytest.approx(drawn[-1], abs=0.05)
    assert drawn[-1] == pytest.approx(float(account.prediction[0, output]), abs=0.01)


def test_queries_outputs_margins_and_permalinks(made, page):
    account, _, _ = made
    fresh(page)
    page.keyboard.press("ArrowRight")
    assert page.evaluate("location.hash") == "#q=1"
    page.select_option("#x-output", "m")
    best, other = account.prediction[1].argsort(descending=True)[:2].tolist()
    total = float((account.contributions[1, best] - account.contributions[1, other]).sum())
    assert number(page.inner_text("#x-count").split(",")[1]) == pytest.approx(total, rel=1e-2, abs=1e-2)
    fresh(page, "q=3&o=0&b=2&s=7&sort=effect")
    assert page.input_value("#x-query") == "3" and page.input_value("#x-output") == "0"
    assert "sample 7" in page.inner_text("#x-sample h3")
    assert page.locator("#x-waterfall-beside svg").count() == 1
    fresh(page, "q=99&o=x&from=-3&sort=none")
    assert page.input_value("#x-query") == "0"


def test_the_table_sorts_filters_and_searches(made, page):
    account, counterfactual, _ = made
    fresh(page, "q=2&o=1")
    row = account.contributions[2, 1]
    first = page.inner_text("#x-table tbody tr:first-child th")
    assert first.strip() == f"sample {int(row.abs().argmax())}"
    page.click("th button[data-sort=effect]")
    effects = counterfactual.effects[2, 1]
    strongest = int(effects.abs().argmax())
    cells = page.locator("#x-table tbody tr:first-child > *").all_inner_texts()
    assert cells[0].strip() == f"sample {strongest}"
    assert number(cells[3]) == pytest.approx(float(effects[strongest]), rel=0.06)
    page.select_option("#x-sign", "-1")
    assert page.inner_text("#x-count").startswith(f"{int((row < 0).sum())} samples")
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("/")
    page.keyboard.type("sample 1")
    assert page.locator("#x-search").input_value() == "sample 1"
    listed = page.locator("#x-table tbody th").all_inner_texts()
    assert listed and all("sample 1" in name for name in listed)


def test_the_table_has_pages_and_a_key_keeps_its_place(made, page):
    account, _, _ = made
    fresh(page, "o=1")
    order = [f"sample {i}" for i in account.contributions[0, 1].abs().argsort(descending=True).tolist()]
    listed = page.locator("#x-table tbody th")
    assert [name.strip() for name in listed.all_inner_texts()] == order[:25]
    assert page.get_attribute("#x-earlier", "aria-disabled") == "true"
    page.focus("#x-later")
    page.keyboard.press("Enter")
    assert [name.strip() for name in listed.all_inner_texts()] == order[25:50]
    assert page.inner_text("#x-rows") == "26 to 50 of 60" and "at=1" in page.evaluate("location.hash")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # there is no later one
    assert page.inner_text("#x-rows") == "51 to 60 of 60"
    fresh(page, "o=1&at=2")
    assert listed.count() == N - 50
    for selector, key in (("th button[data-sort=label]", "Enter"), ("#x-time input >> nth=0", "ArrowRight")):
        page.focus(selector)
        before = page.evaluate("location.hash")
        page.keyboard.press(key)
        assert page.evaluate("location.hash") != before
        assert page.locator(selector).evaluate("it => it === document.activeElement")
    assert page.inner_text("#x-rows") == "1 to 25 of 60"
    page.fill("#x-search", "sample 1")
    assert page.is_hidden("#x-pages") and listed.count() == 11


def test_a_sample_lists_the_queries_that_it_moved(made, page):
    account, _, _ = made
    fresh(page, "s=4")
    moved = torch.stack([account.contributions[q, account.prediction[q].argmax(), 4] for q in range(Q)])
    told = page.locator("#x-sample ol button").all_inner_texts()
    assert told[0].strip().startswith(f"query {int(moved.abs().argmax())} ") and len(told) == Q
    names = page.locator("#x-sample .features tbody th").all_inner_texts()
    assert sorted(names) == sorted(["age", "size", "<i>shape</i>", "grade"])


def test_the_brush_tells_what_steps_contributed(made, page):
    account, _, _ = made
    fresh(page, "q=1&o=0&from=10&to=30")
    caption = page.inner_text("#x-time figcaption")
    expected = float(account.by_step[1, 0, 10:30].sum())
    assert "Steps 11 to 30 of 40" in caption
    assert number(caption.split("contributed")[1].split("logits")[0]) == pytest.approx(expected, abs=0.02)


def test_the_table_is_saved(made, page):
    account, counterfactual, _ = made
    fresh(page, "q=2&o=1")
    with page.expect_download() as download:
        page.click("#x-csv")
    lines = download.value.path().read_text().splitlines()
    assert len(lines) == N + 1 and lines[0].endswith('"contribution","change if left out"')
    name, value, effect = (lines[1].split(",")[i].strip('"') for i in (-4, -2, -1))
    index = int(account.contributions[2, 1].abs().argmax())
    assert f"sample {index}" in lines[1] and name
    assert float(value) == pytest.approx(float(account.contributions[2, 1, index]), rel=1e-4)
    assert float(effect) == pytest.approx(float(counterfactual.effects[2, 1, index]), rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hinders(page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page.emulate_media(color_scheme=scheme)
    fresh(page, "q=1&b=2&s=3")
    found = axe.Axe().run(page)
    page.emulate_media(color_scheme="light")
    assert found.violations_count == 0, found.generate_report()


def test_narrow_and_printed(page, tmp_path):
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    page.set_viewport_size({"width": 400, "height": 800})
    fresh(page, "b=1&s=3")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.set_viewport_size({"width": 1000, "height": 900})
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    sheets = [sheet.extract_text() for sheet in pypdf.PdfReader(tmp_path / "page.pdf").pages]
    text = " ".join(" ".join(sheets).split())
    for column in ("query", "output", "initial", "contributions", "decay", "residual", "prediction"):
        assert column in text
    assert len([sheet for sheet in sheets if "towards" in sheet]) >= Q  # a page for each query


@pytest.fixture(scope="module")
def study_pages(browser, tmp_path_factory):
    """The pages of two studies and their index, in a browser."""
    out = tmp_path_factory.mktemp("studies")
    entries = []
    for name in ("linear-regression", "positive-definite"):
        outcome = run_study(name, configure(name, quick=True), out / name)
        picture = next(iter(outcome.record["figures"].values()))
        entries.append(IndexEntry(name, about(name)[1], places(name), 1, 1, picture))
    (out / "index.html").write_text(render_index(entries, PAPERS), encoding="utf-8")
    opened = browser.new_page(viewport={"width": 400, "height": 800})
    opened.addresses = [f.as_uri() for f in (out / "index.html", *sorted(out.glob("*/report.html")))]
    return opened


@pytest.mark.slow
def test_the_pages_of_studies_are_read_by_all(study_pages, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    for address in study_pages.addresses:
        study_pages.goto(address)
        assert study_pages.evaluate("document.documentElement.scrollWidth") <= 400, address
        for scheme in ("light", "dark"):
            study_pages.emulate_media(color_scheme=scheme)
            found = axe.Axe().run(study_pages)
            assert found.violations_count == 0, found.generate_report()
        if address.endswith("report.html"):
            assert study_pages.locator("svg[role=img] > title").count() >= 1
            study_pages.pdf(path=tmp_path / "page.pdf", format="A4")
            text = " ".join(s.extract_text() for s in pypdf.PdfReader(tmp_path / "page.pdf").pages)
            for column in ("claim", "paper", "measured", "bar", "holds?"):
                assert column in text
