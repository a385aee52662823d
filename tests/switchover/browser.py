# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A person at a real browser: Debian's Chromium without a window, driven by its own driver."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

_SECONDS = 30


def _end_with_parent() -> None:
    # PR_SET_PDEATHSIG: the process of the tests may be killed, and no browser must stay.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Person:
    """Somebody who signs in by the page and looks at the studio dashboard.

    Args:
        driver: the browser.
        url: where the application is, with its base path.
    """

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self._driver, self._url = driver, url

    def sign_in(self, email: str, password: str) -> None:
        """Forget who was signed in, and sign in by password, with whichever button the release has for owners."""
        driver = self._driver
        driver.get(f"{self._url}/de/auth/signin")
        driver.delete_all_cookies()
        driver.get(f"{self._url}/de/auth/signin")
        button = self._wait("button[value=studio-credentials], button[value=credentials]")
        driver.find_element(By.NAME, "email").send_keys(email)
        driver.find_element(By.NAME, "password").send_keys(password)
        button.click()
        self._wait("[data-testid=person]")

    def bookings(self) -> list[tuple[str, str]]:
        """Return the id and the text of each booking that the studio dashboard shows, as it shows them."""
        self._driver.get(f"{self._url}/de/studio/dashboard")
        self._wait("[data-testid=person]")
        assert self._driver.find_element(By.TAG_NAME, "h1").text == "Meine Studios"
        return [(row.get_attribute("data-booking"), row.text) for row in self._driver.find_elements(By.CSS_SELECTOR, "tr[data-booking]")]

    def photograph(self, path: Path) -> None:
        """Save what is seen as a picture."""
        path.parent.mkdir(parents=True, exist_ok=True)
        assert self._driver.save_screenshot(str(path))

    def _wait(self, selector: str):
        return WebDriverWait(self._driver, _SECONDS).until(lambda driver: next(iter(driver.find_elements(By.CSS_SELECTOR, selector)), None))


@contextlib.contextmanager
def person_at(url: str, profile: Path):
    """Open a browser of its own, and close it; it ends with this process in any case.

    Args:
        url: where the application is, with its base path.
        profile: an empty directory for what the browser keeps.
    """
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert browser and driver, "chromium or chromedriver is missing: run make setup"
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # As root, as in a container, it does not start with its sandbox; it sees nothing but the application.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=900,620", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    service = webdriver.ChromeService(driver, popen_kw={"preexec_fn": _end_with_parent})
    chrome = webdriver.Chrome(options, service)
    try:
        yield Person(chrome, url)
    finally:
        chrome.quit()
