"""What a person sees: MLflow's own pages of a real sweep, on a real server, in headless Chromium.

Each page's screenshot lies in the test's folder (`--basetemp` says where), for a person to look at.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from lmim import pages
from lmim.tracking import connect
from tests.mlflow_server import new_database, serving
from tests.sweep.running import arguments, run, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1800,1200"
)


@dataclass
class Pages:
    """A finished sweep on a server, and a browser to look at it."""

    browser: webdriver.Chrome
    uri: str
    printed: str
    experiment: str
    parent: str
    children: dict[str, str]
    shots: Path

    def open(self, end: str, *texts: str) -> str:
        """Open an address on the server, wait for all texts, and keep a picture; the page's text."""
        self.browser.get("about:blank")  # what follows # alone loads no page
        self.browser.get(f"{self.uri}/{end}")
        return self.sees(*texts)

    def sees(self, *texts: str) -> str:
        """Wait until the page shows all texts, and keep a picture of it; the page's text."""
        shown = ""

        def all_there(browser: webdriver.Chrome) -> bool:
            nonlocal shown
            shown = str(browser.execute_script("return document.body.innerText"))
            return all(text in shown for text in texts)

        try:
            WebDriverWait(self.browser, 120).until(all_there)
        finally:
            number = len(list(self.shots.glob("*.png")))
            self.browser.save_screenshot(str(self.shots / f"{number}.png"))
            missing = [text for text in texts if text not in shown]
            assert not missing, f"{self.browser.current_url} lacks {missing}:\n{shown}"
        return shown

    def follow(self, link: str) -> None:
        """Click on a link of this text, and go on in the tab that it opens."""
        self.browser.find_element(By.PARTIAL_LINK_TEXT, link).click()
        WebDriverWait(self.browser, 60).until(lambda browser: len(browser.window_handles) == 2)
        self.browser.close()
        self.browser.switch_to.window(self.browser.window_handles[0])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.fail(
            "Chromium and its driver are not here: apt-get install -y chromium chromium-driver", False
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture(scope="module")
def seen(browser: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    folder = tmp_path_factory.mktemp("pages")
    more = "claims: [mse > cosine]\nbaselines: [raw_pixels]\nevaluate: [knn, nn]\n"
    file = write(folder, arms="[mse, cosine, smooth_l1]", seeds="[0, 1, 2]", more=more)
    with serving(folder, new_database(folder)) as server:
        printed = run(arguments(file, "--serial", "--tracking-uri", server.uri, epochs=4))
        client = connect(server.uri)
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = (one.info.run_id for one in runs if "lmim.sweep" in one.data.tags)
        children = {str(one.info.run_name): one.info.run_id for one in runs if one.info.run_id != parent}
        yield Pages(browser, server.uri, printed, experiment.experiment_id, parent, children, folder)


def test_the_sweeps_page(seen: Pages) -> None:
    """Who opens the address that the command prints would see an empty page, or one on language models."""
    address = next(line for line in seen.printed.splitlines() if line.startswith("MLflow: "))[8:]
    assert address == f"{seen.uri}/{pages.page(seen.experiment, seen.parent)}"
    texts = ["does it run?", "1 claim: ", "trials by arm and seed", "tiny.yaml", "digits (", "lmim.verdict.1"]
    shown = seen.open(
        pages.page(seen.experiment, seen.parent), *texts, "claims/undecided", "smooth_l1 seed 2"
    )
    assert "Traces\nSessions" not in shown, "the menu of the pages on language models"
    seen.browser.find_element(By.XPATH, "//*[text()='Show more']").click()
    seen.sees("k-NN top-1 (%)", "Baselines in italics")
    assert seen.browser.find_elements(By.XPATH, "//td[contains(., 'smooth_l1')]"), "the table is no table"


def test_trials_by_arm_and_seed(seen: Pages) -> None:
    """The list of runs would open on one folded row."""
    seen.open(f"#/experiments/{seen.experiment}?{pages.TRAINING}", "tiny demo", "trials by arm and seed")
    seen.follow("trials by arm and seed")
    rows = ("Group: mse", "Group: smooth_l1", "cosine seed 0", "cosine seed 2", "12 matching runs")
    seen.sees(*rows, "lmim.arm", "lmim.seed", "eval/knn_top1")


def test_charts_by_arm(seen: Pages) -> None:
    """The chart view would open without a chart, or with lines of one point."""
    seen.open(pages.page(seen.experiment, seen.parent), "charts by arm")
    seen.follow("charts by arm")
    shown = seen.sees("Group: mse", "eval/knn_top1", "eval/rank_ratio", "train/loss")
    assert "No charts in this section" not in shown
    bars = (By.CSS_SELECTOR, ".plot-container .bars .point")
    WebDriverWait(seen.browser, 60).until(lambda browser: len(browser.find_elements(*bars)) >= 4)


def test_three_trials_side_by_side(seen: Pages) -> None:
    """The comparison would show three runs that nobody can tell apart."""
    names = ["mse seed 0", "cosine seed 0", "smooth_l1 seed 0"]
    runs = quote(json.dumps([seen.children[name] for name in names]))
    place = f"#/compare-runs?runs={runs}&experiments={quote(json.dumps([seen.experiment]))}"
    seen.open(place, "Comparing 3 Runs", *names, "Parallel Coordinates", "eval/knn_top1", "train/loss")


def test_the_report_among_the_artifacts(seen: Pages) -> None:
    """The report would be a file to download, or a page without its figures."""
    place = pages.page(seen.experiment, seen.parent, "/artifacts/report.html")
    seen.open(place, "comparison.png", "table.csv", "trials.csv", "plan.json")
    WebDriverWait(seen.browser, 60).until(lambda browser: browser.find_elements(By.TAG_NAME, "iframe"))
    seen.browser.switch_to.frame(seen.browser.find_element(By.TAG_NAME, "iframe"))
    try:
        seen.sees("does it run?", "Verdicts", "Provenance")
        drawn = "return [...document.images].filter(image => image.naturalWidth > 100).length"
        assert seen.browser.execute_script(drawn) == 2
    finally:
        seen.browser.switch_to.default_content()
