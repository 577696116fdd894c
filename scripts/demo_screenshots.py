"""Pictures of the demo for the docs, from a demo and an API that run: `python scripts/demo_screenshots.py`."""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

SIZES = {"wide": (1440, 900), "phone": (390, 844)}
DIGITS = Path("runs/quickstart/digits/images")
TURNS = {"Which digit is shown?": ["0393.png"], "Which of the two is larger?": ["0454.png", "0829.png"]}
PATIENCE = 60_000
"""Milliseconds for an answer."""


def main() -> None:
    """Ask about the quickstart's digits in a window of each size; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", default="http://127.0.0.1:7860", help="where the demo is (default: %(default)s)")
    parser.add_argument("--digits", type=Path, default=DIGITS, help="folder of digits (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("docs"), help="default: %(default)s")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in SIZES:
            write_small(picture(browser, args.demo, name, args.digits), args.output_dir / f"demo-{name}.png")
        browser.close()


def picture(browser: Browser, url: str, name: str, digits: Path) -> bytes:
    """A PNG of the demo in the middle of a conversation, with an example in the box."""
    width, height = SIZES[name]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(url)
    page.locator("#state .pill.ok").wait_for()
    page.get_by_label("do_sample").uncheck()
    if name == "wide":
        page.get_by_role("button", name="The exact prompt").click()
    for number, (text, images) in enumerate(TURNS.items()):
        page.locator("#box input[type=file]").set_input_files([digits / image for image in images])
        expect(page.locator("#box .thumbnail-item")).to_have_count(len(images))
        page.locator("#box textarea").fill(text)
        page.locator("#box textarea").press("Enter")
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(number + 1, timeout=PATIENCE)
        expect(page.locator("#box [data-testid=submit-button]")).to_be_visible(timeout=PATIENCE)
    write_draft(page)
    return page.screenshot()


def write_draft(page: Page) -> None:
    """Put an example and a question into the box."""
    page.locator("#examples button").first.click()
    page.locator("#box .thumbnail-item").wait_for()
    page.locator("#box textarea").fill("And what is this?")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1000)  # until nothing moves


def write_small(png: bytes, path: Path) -> None:
    """A PNG of at most 256 colours."""
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


if __name__ == "__main__":
    main()
