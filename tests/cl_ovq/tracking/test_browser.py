"""MLflow's pages in a real browser: what people see there holds the numbers that were logged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from .conftest import free_port

SECONDS = 300  # on a busy machine; seconds on an idle one
VARIANTS = {
    "softmax": "model.mixer=softmax",
    "sequence": "dictionary.scope=sequence",
    "stream": "dictionary.scope=stream",
}


@pytest.fixture(scope="module")
def runs(tiny, run_in, tmp_path_factory):
    """Three runs in the default store of a folder: a quickstart in small."""
    folder = tmp_path_factory.mktemp("compared")
    results = {
        name: run_in(folder, tiny("tracking.enabled=true", "tracking.log_model=false", override))
        for name, override in VARIANTS.items()
    }
    return folder, results


@pytest.fixture(scope="module")
def addresses(runs):
    """What `cl-ovq ui` prints: the address of the comparison page and of the charts."""
    folder, _ = runs
    command = [sys.executable, "-c", "from cl_ovq.cli import main; main()", "ui", "--port", str(free_port())]
    process = subprocess.Popen(
        [*command, "--no-browser"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        assert all("http://127.0.0.1:" in line for line in lines), lines
        yield {line.split(":")[0].split()[0]: re.search(r"http\S+", line)[0] for line in lines[1:]}
    finally:
        process.terminate()
        assert process.wait(timeout=SECONDS) == 143


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser is installed: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
    flags += " disable-component-update disable-dev-shm-usage hide-scrollbars window-size=1600,1400"
    for flag in (*flags.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    window.set_script_timeout(SECONDS)
    # The panel of MLflow's assistant, open on first sight, takes a third of the page.
    closed = "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
    closed += "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    window.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": closed})
    try:
        yield window
    finally:
        window.quit()


def until(browser, script, name):
    """Wait until a script in the page returns something true, keep a picture, and return it."""
    deadline = time.monotonic() + SECONDS
    while not (found := browser.execute_script(script)):
        assert time.monotonic() < deadline, browser.execute_script("return document.body.innerText")
        time.sleep(0.3)
    if pictures := os.environ.get("CL_OVQ_PICTURES"):
        browser.save_screenshot(str(Path(pictures) / f"{name}.png"))
    return found


def open_page(browser, address):
    browser.get("about:blank")  # a page that differs after the # alone would not be loaded anew
    browser.get(address)


def test_comparison_page_shows_what_was_logged(browser, addresses, runs):
    folder, results = runs
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/runs/mlflow.db")
    open_page(browser, addresses["compare"])
    script = "const t = document.body.innerText, p = document.querySelector('.js-plotly-plot .parcoords');"
    script += "return p && t.includes('backward_transfer') && t"
    assert "Comparing 3 Runs" in until(browser, script, "compare")
    rows = table_rows(browser)
    assert "accuracy" in rows, rows
    for name in ("accuracy", "forgetting", "backward_transfer"):
        shown = sorted(float(cell) for cell in rows[name])
        assert shown == pytest.approx(sorted(result.metrics[name] for result in results.values()), abs=6e-4), name
    sizes = sorted(float(cell) for cell in rows["dictionary/size"])
    assert sizes == pytest.approx(sorted(result.dictionary["size"] for result in results.values()), abs=0.06)
    assert sorted(rows["model.mixer"]) == ["ovq", "ovq", "softmax"]
    assert sorted(rows["scope"]) == ["none", "sequence", "stream"]
    # The parallel coordinates plot has axes for the first parameters that differ, and one for a metric.
    axes = browser.execute_script("return [...document.querySelectorAll('.js-plotly-plot')].map(p => p.data[0])")
    (parallel,) = [data for data in axes if data["type"] == "parcoords"]
    labels = {axis["label"] for axis in parallel["dimensions"]}
    logged = [client.get_run(result.run_id).data for result in results.values()]
    names = {key for data in logged for key in data.params}
    differing = {key for key in names if len({data.params.get(key) for data in logged}) > 1}
    assert {"model.mixer", "dictionary.scope"} <= differing
    assert labels <= differing | {"accuracy"}  # the metric that a run logs first
    assert "accuracy" in labels
    assert len(labels) >= 3


def table_rows(browser):
    """The cells of the page's tables by the text of the first, scrolling those that show a part."""
    script = """
    const frames = 'table, .ReactVirtualized__Grid', cells = [];
    for (const frame of document.querySelectorAll(frames)) frame.scrollTop = arguments[0];
    const texts = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT), range = new Range();
    for (let node = texts.nextNode(); node; node = texts.nextNode()) {
        const frame = node.parentElement.closest(frames), text = node.textContent.trim();
        if (!frame || !text) continue;
        range.selectNode(node);
        const box = range.getBoundingClientRect(), seen = frame.getBoundingClientRect();
        const middle = (box.top + box.bottom) / 2;
        if (seen.top < middle && middle < seen.bottom) cells.push([middle, box.left, text]);
    }
    return cells"""
    found = {}
    for top in range(0, 3000, 150):
        browser.execute_script(script, top)
        time.sleep(0.2)  # the page draws what came into sight
        rows, last = [], -100.0
        for middle, left, text in sorted(browser.execute_script(script, top)):
            if middle - last > 8:
                rows.append([])
            rows[-1].append((left, text))
            last = middle
        found |= {row[0][1]: [text for _, text in row[1:]] for row in map(sorted, rows) if len(row) == 4}
    return found


def test_saved_view_draws_growth_and_forgetting(browser, addresses, runs):
    folder, results = runs
    open_page(browser, addresses["curves"])
    titles = until(
        browser,
        """
        const plots = [...document.querySelectorAll('.js-plotly-plot')];
        const drawn = plots.filter(p => p.querySelector('.scatterlayer .js-line, .scatterlayer .point'));
        return drawn.length >= 6 && document.body.innerText""",
        "view",
    )
    assert "Stream, by experience" in titles
    assert "Dictionaries, by training step" in titles
    assert "dictionary/size" in titles
    for result in results.values():
        assert result.run_name[:14] in titles
    # The growth curve of the run with a shared dictionary, read off the chart's own data, is what was logged.
    curves = browser.execute_script(
        """
        return [...document.querySelectorAll('.js-plotly-plot')].flatMap(p => p.data
            .filter(t => t.x && t.y && t.x.length > 5)
            .map(t => [Array.from(t.x), Array.from(t.y)]))"""
    )
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/runs/mlflow.db")
    history = client.get_metric_history(results["stream"].run_id, "dictionary/size")
    wanted = sorted((metric.step, metric.value) for metric in history)
    found = [sorted(zip(x, y, strict=True)) for x, y in curves]
    assert wanted in found


def test_experiment_page_lists_the_runs(browser, addresses, runs):
    _, results = runs
    open_page(browser, addresses["curves"].replace("compareRunsMode=CHART", "compareRunsMode=TABLE"))
    names = [result.run_name for result in results.values()]
    script = f"const t = document.body.innerText; return {json.dumps(names)}.every(n => t.includes(n)) && t"
    text = until(browser, script, "table")
    for column in ("forgetting", "accuracy"):
        assert column in text
    for result in results.values():
        assert f"{result.metrics['forgetting']:.12f}"[:6] in text  # the page does not round
