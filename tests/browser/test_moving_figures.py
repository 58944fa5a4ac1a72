"""The figures that the reader moves: by key, mouse and finger, and without scripts."""

import pytest
from built_pages import MOVING

from dropreg.book.interactive import INTERACTIVE_KINDS


def test_every_moving_figure_is_tested():
    assert set(MOVING) == set(INTERACTIVE_KINDS)


@pytest.mark.parametrize("kind", MOVING)
def test_a_figure_moves_by_the_keyboard(visit, kind):
    opened = visit(MOVING[kind])
    opened.show_everything()  # it may wait for a vote
    figure = opened.page.locator(f'figure[data-kind="{kind}"]')
    assert figure.locator(".fallback").is_hidden()
    assert figure.locator(".moving svg").is_visible()
    words = figure.locator('[aria-live="polite"]')
    controls = figure.locator(":is(input, select, button):visible")
    assert controls.count() > 0
    for index in range(controls.count()):
        control = controls.nth(index)
        tag = control.evaluate("e => e.tagName")
        name = control.evaluate("e => (e.labels?.[0] ?? e).textContent")
        assert name.strip(), f"{kind}: a control without a name"
        said, drawn = words.text_content(), figure.locator(".moving svg").inner_html()
        assert any(character.isdigit() for character in said)
        control.focus()
        if tag == "INPUT":
            key = "ArrowLeft" if control.evaluate("e => e.value === e.max") else "ArrowRight"
        else:
            key = "ArrowDown" if tag == "SELECT" else "Enter"
        opened.page.keyboard.press(key)
        assert words.text_content() != said, f"{kind}: {name} changes nothing"
        assert figure.locator(".moving svg").inner_html() != drawn
    assert opened.problems == []


@pytest.mark.parametrize("kind", MOVING)
def test_a_figure_begins_the_same_each_time(visit, kind):
    first, second = (
        visit(MOVING[kind]).page.locator(f'figure[data-kind="{kind}"] .moving svg').inner_html()
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("kind", MOVING)
def test_a_figure_fits_the_narrowest_phone_and_can_be_read_in_both_themes(visit, kind):
    opened = visit(MOVING[kind], width=320, scheme="dark")
    figure = opened.page.locator(f'figure[data-kind="{kind}"]')
    fits_and_can_be_read(figure)
    opened.turn("light")
    fits_and_can_be_read(figure)


def fits_and_can_be_read(figure):
    reach = figure.evaluate(
        """f => Math.max(...[...f.querySelectorAll('.moving, .moving *')].map(
            e => e.getBoundingClientRect().right))"""
    )
    assert reach <= 320
    # Text against what lies behind it by the formula of WCAG, drawn text by what it is filled with.
    contrasts = figure.evaluate(
        """f => {
            const pen = document.createElement('canvas').getContext('2d');
            const rgb = s => {
                pen.clearRect(0, 0, 1, 1);
                pen.fillStyle = s;
                pen.fillRect(0, 0, 1, 1);
                return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3); };
            const light = c => { const [r, g, b] = rgb(c).map(v => v / 255).map(
                v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const ground = e => {
                const color = getComputedStyle(e).backgroundColor;
                return /, 0\\)$/.test(color) ? ground(e.parentElement) : color; };
            const texts = 'svg text, label, .value, .says, select, button';
            return [...f.querySelector('.moving').querySelectorAll(texts)].map(e => {
                const style = getComputedStyle(e);
                const back = light(ground(e));
                const fore = light(e.closest('svg') ? style.fill : style.color);
                const [high, low] = [Math.max(fore, back), Math.min(fore, back)];
                return [(high + 0.05) / (low + 0.05), e.textContent]; }); }"""
    )
    assert [low for low in contrasts if low[0] < 4.5] == []


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "finger"])
def test_the_probabilities_can_be_dragged(visit, touch):
    page = visit(MOVING["simplex"], touch=touch).page
    figure = page.locator('figure[data-kind="simplex"]')
    figure.scroll_into_view_if_needed()
    scrolled = page.evaluate("() => window.scrollY")
    before = figure.locator(".says").text_content()
    handle = figure.locator("circle").bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    path = [(x + step, y - step) for step in (0, 10, 20, 30)]
    if touch:
        device = page.context.new_cdp_session(page)
        for kind, at in zip(
            ("touchStart", "touchMove", "touchMove", "touchMove"), path, strict=True
        ):
            points = [{"x": at[0], "y": at[1]}]
            device.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        device.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        page.mouse.move(*path[0])
        page.mouse.down()
        for at in path[1:]:
            page.mouse.move(*at)
        page.mouse.up()
    assert figure.locator(".says").text_content() != before
    moved = figure.locator("circle").bounding_box()
    assert moved["x"] > handle["x"] + 15
    assert moved["y"] < handle["y"] - 15
    assert page.evaluate("() => window.scrollY") == scrolled
    values = [float(each.input_value()) for each in figure.locator("input").all()]
    assert sum(values) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", [kind for kind in MOVING if kind != "simplex"])
def test_a_finger_moves_a_figure(visit, kind):
    opened = visit(MOVING[kind], width=360, touch=True)
    opened.show_everything()  # it may wait for a vote
    page = opened.page
    figure = page.locator(f'figure[data-kind="{kind}"]')
    control = figure.locator("input[type=range]").first
    said = figure.locator('[aria-live="polite"]').text_content()
    control.scroll_into_view_if_needed()
    box = control.bounding_box()
    assert box["height"] >= 24  # WCAG's target size
    page.touchscreen.tap(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
    assert figure.locator('[aria-live="polite"]').text_content() != said


def said_by(figure):
    return figure.locator(".says").text_content()


@pytest.mark.parametrize("kind", ["fit", "masks"])
def test_a_figure_plays_when_it_is_told_to_and_stops_when_nobody_looks(visit, kind):
    page = visit(MOVING[kind]).page
    page.emulate_media(reduced_motion="no-preference")
    figure = page.locator(f'figure[data-kind="{kind}"]')
    play = figure.get_by_role("button", name="Play")
    page.clock.install()
    page.reload()
    begun = said_by(figure)
    page.clock.run_for(5000)
    assert said_by(figure) == begun  # paused until it is asked
    play.focus()
    page.keyboard.press("Enter")
    assert play.get_attribute("aria-pressed") == "true"
    assert figure.locator(".says").get_attribute("aria-live") == "off"
    seen = set()
    for _ in range(4):
        seen.add(said_by(figure))
        page.clock.run_for(700)
    assert len(seen) == 4
    page.evaluate(
        """() => { Object.defineProperty(document, 'hidden', {value: true});
            document.dispatchEvent(new Event('visibilitychange')); }"""
    )
    assert play.get_attribute("aria-pressed") == "false"
    assert figure.locator(".says").get_attribute("aria-live") == "polite"
    stopped = said_by(figure)
    page.clock.run_for(5000)
    assert said_by(figure) == stopped


@pytest.mark.parametrize("kind", ["fit", "masks"])
def test_for_whom_motion_troubles_a_button_makes_one_step(visit, kind):
    page = visit(MOVING[kind]).page  # a visit asks for less motion
    figure = page.locator(f'figure[data-kind="{kind}"]')
    assert figure.get_by_role("button", name="Play").count() == 0
    page.clock.install()
    begun = said_by(figure)
    figure.get_by_role("button", name="Next step").click()
    once = said_by(figure)
    assert once != begun
    page.clock.run_for(5000)
    assert said_by(figure) == once


def test_a_fit_plays_to_its_end_and_stops_there(visit):
    page = visit(MOVING["fit"]).page
    page.emulate_media(reduced_motion="no-preference")
    page.clock.install()
    page.reload()
    figure = page.locator('figure[data-kind="fit"]')
    play, slider = figure.get_by_role("button", name="Play"), figure.get_by_role("slider")
    play.click()
    page.clock.run_for(60_000)
    assert play.get_attribute("aria-pressed") == "false"
    assert slider.input_value() == slider.get_attribute("max")
    play.click()  # and begins again
    assert slider.input_value() == "0"


@pytest.mark.parametrize("kind", MOVING)
def test_without_scripts_the_fallback_is_shown(visit, kind):
    figure = visit(MOVING[kind], scripts=False).page.locator(f'figure[data-kind="{kind}"]')
    fallback = figure.locator(".fallback > :is(table, svg)")
    assert fallback.is_visible()
    text = fallback.evaluate(
        """f => f.ariaLabel ?? document.getElementById(
            f.getAttribute('aria-labelledby'))?.textContent ?? f.innerText"""
    )
    assert len(text) > 20
    assert figure.locator(".moving").count() == 0
