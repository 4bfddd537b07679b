"""The page as a person meets it: real Chromium, visible labels only, nothing from another machine."""

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.ui.serving import serve

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `apt-get install chromium`, or any that is on the PATH"),
]

# Without a graphics card the 3D viewer says so, three times, and goes on in software.
HARMLESS = re.compile("WebGPU|No available adapters|GL Driver Message")
WAIT = 120_000


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    run = folder / "runs" / "first"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("steps: 2\n")
    (run / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    Image.new("RGB", (64, 48), "teal").save(run / "curves.png")
    with serve("--port", "0", cwd=folder, log=folder / "server.log") as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=CHROMIUM, headless=True, args=flags)
        yield tool, chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page in a fresh profile; at the end nothing may have failed, and nothing have left the machine."""
    tool, chromium = browser
    contexts, complaints, outside = [], [], []

    def noted(request):
        if not request.url.startswith((address, "data:", "blob:")):
            outside.append(request.url)

    def open_page(device: str | None = None, **options):
        context = chromium.new_context(**((tool.devices[device] if device else {}) | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", noted)
        page.goto(address)
        page.get_by_role("button", name="Draw", exact=True).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not outside
    assert not [text for text in complaints if not HARMLESS.search(text)]


@pytest.fixture
def photo(tmp_path):
    """A picture whose depth is not flat for any model that sees something."""
    rows, columns = np.mgrid[0:96, 0:128]
    pixels = np.stack([rows * 2, columns, (rows // 16 + columns // 16) % 2 * 200], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def give_photo(page, file) -> None:
    page.locator("#photo input[type=file]").first.set_input_files(file)
    page.locator("#preview img").wait_for()


def set_up(page, file, prompt="red clay shapes on green grass hills at noon", steps="2", pictures="1") -> None:
    give_photo(page, file)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Settings").first.click()
    for name, value in (("Steps", steps), ("Number of pictures", pictures)):
        field = page.get_by_label(f"number input for {name}")
        field.fill(value)
        field.press("Enter")


def draw(page) -> None:
    page.get_by_role("button", name="Draw", exact=True).click()


def finished(page, text="seed") -> None:
    page.locator("#status").get_by_text(re.compile(rf"\d pictures?, {text}")).wait_for()


def download(page, name: str) -> bytes:
    with page.expect_download() as found:
        page.get_by_role("button", name=name).click()
    return found.value.path().read_bytes()


def test_from_a_photo_to_a_downloaded_picture(visit, photo):
    page = visit()
    set_up(page, photo, pictures="2")
    draw(page)
    finished(page)
    picture = Image.open(io.BytesIO(download(page, "Download picture")))
    assert picture.format == "PNG" and "depth-control-recipe" in picture.text
    depth = Image.open(io.BytesIO(download(page, "Download depth (16-bit)")))
    assert depth.mode.startswith("I;16") and depth.size == (128, 96)
    assert len(np.unique(np.asarray(depth))) > 256
    assert download(page, "Download points (GLB)")[:4] == b"glTF"
    captions = page.locator("#gallery").get_by_text(re.compile(r"structure -?\d"))
    assert captions.count() >= 2
    page.get_by_label("best structure first").check()
    page.wait_for_timeout(500)
    shown = [float(re.search(r"structure (-?[\d.]+)", text)[1]) for text in captions.all_inner_texts()]
    assert shown == sorted(shown, reverse=True)


def test_the_handles_change_the_preview(visit, photo):
    page = visit()
    give_photo(page, photo)
    picture = page.locator("#preview img")
    before = picture.get_attribute("src")
    field = page.get_by_label("number input for Far handle")
    field.fill("0.4")
    field.press("Enter")
    playwright.expect(picture).not_to_have_attribute("src", before)
    chart = page.get_by_role("img", name=re.compile("far handle at 0.40"))
    chart.wait_for()
    middle = picture.get_attribute("src")
    page.get_by_label("Invert").check()
    playwright.expect(picture).not_to_have_attribute("src", middle)


def test_stop_frees_the_place_for_the_next_person(visit, photo):
    first, second = visit(), visit()
    set_up(first, photo, steps="100", pictures="4")
    draw(first)
    first.locator("#status").get_by_text(re.compile("step [1-9]")).wait_for()
    set_up(second, photo)
    draw(second)
    first.get_by_role("button", name="Stop", exact=True).click()
    first.locator("#status").get_by_text("Stopped").wait_for()
    finished(second)


def test_a_recipe_gives_the_same_picture_again(visit, photo, tmp_path):
    page = visit()
    set_up(page, photo, steps="3")
    for name, value in (("Near handle", "0.1"), ("Gamma", "1.5"), ("Control strength", "0.8")):
        field = page.get_by_label(f"number input for {name}")
        field.fill(value)
        field.press("Enter")
    page.get_by_label("Seed", exact=True).fill("1234")
    draw(page)
    finished(page, "seed 1234")
    first = download(page, "Download picture")
    (tmp_path / "picture.png").write_bytes(first)
    other = visit()
    give_photo(other, photo)
    other.get_by_role("button", name="Load a recipe").click()
    other.get_by_label("Picture or recipe").locator("input[type=file]").or_(
        other.locator("input[type=file][accept*='.json']")
    ).first.set_input_files(tmp_path / "picture.png")
    other.locator("#status").get_by_text("The recipe is loaded.", exact=True).wait_for()
    assert other.get_by_label("Prompt", exact=True).input_value() == "red clay shapes on green grass hills at noon"
    draw(other)
    finished(other, "seed 1234")
    assert download(other, "Download picture") == first


def test_depth_tab_reads_a_point_and_shows_points_in_space(visit, photo):
    page = visit()
    page.get_by_role("tab", name="Depth").click()
    page.locator("#depth_photo input[type=file]").first.set_input_files(photo)
    page.get_by_role("button", name="Estimate depth").click()
    page.locator("#depth_colour img").click(position={"x": 20, "y": 20})
    page.locator("#reading").get_by_text(re.compile("nearness")).wait_for()
    page.locator("canvas").first.wait_for()
    assert download(page, "Download npz")[:2] == b"PK"


def test_a_wrong_depth_file_is_explained_and_swapped_by_one_click(visit, tmp_path):
    rows = np.linspace(65535, 0, 96).astype(np.uint16)
    Image.fromarray(np.repeat(rows[:, None], 128, axis=1)).save(tmp_path / "depth.png")
    page = visit()
    page.get_by_role("button", name="Use a depth map of your own").click()
    page.locator("input[type=file][accept*='.npz']").set_input_files(tmp_path / "depth.png")
    page.get_by_text("near and far look swapped").wait_for()
    before = page.locator("#preview img").get_attribute("src")
    page.get_by_role("button", name="Swap near and far").click()
    playwright.expect(page.locator("#preview img")).not_to_have_attribute("src", before)
    page.get_by_text("near and far look swapped").wait_for(state="hidden")


def test_the_grid_and_the_runs(visit, photo):
    page = visit()
    set_up(page, photo)
    page.get_by_role("button", name="Compare strengths").click()
    page.get_by_role("button", name="Draw the grid").click()
    page.locator("#status").get_by_text("The grid is done.").wait_for()
    page.get_by_role("tab", name="Runs").click()
    page.get_by_text("Last line: step 2, loss 0.25").wait_for()


def test_an_empty_prompt_is_told_in_plain_words(visit, photo):
    page = visit()
    give_photo(page, photo)
    draw(page)
    page.get_by_text("The prompt is empty").wait_for()
    page.locator("#status").get_by_text("That did not work").wait_for()


def test_a_hostile_file_name_is_shown_as_text(visit, tmp_path):
    file = tmp_path / "<img src=x onerror=hacked=1>.json"
    file.write_text("{}")
    page = visit()
    page.get_by_role("button", name="Load a recipe").click()
    page.locator("input[type=file][accept*='.json']").set_input_files(file)
    page.get_by_text("its recipe is damaged").wait_for()
    assert page.evaluate("typeof hacked") == "undefined"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(visit, photo, scheme):
    page = visit("Pixel 7", color_scheme=scheme)
    set_up(page, photo)
    draw(page)
    finished(page)
    for tab in ("Generate", "Depth", "Runs"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_keyboard_is_enough(visit, photo):
    page = visit()
    set_up(page, photo)
    page.get_by_label("Prompt", exact=True).focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "draw":
            break
    page.keyboard.press("Enter")
    finished(page)
