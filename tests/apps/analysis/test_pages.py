"""The pages: what they say, that nothing in a text becomes code, and how they behave in a browser."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps.analysis.attention import AttentionMaps, attention_maps
from apps.analysis.attention_page import attention_page, plot_attention
from apps.analysis.embeddings import embedding_table, project
from apps.analysis.embeddings_page import embeddings_page, kind_of, plot_embeddings
from apps.analysis.page import Page
from apps.analysis.routing import Routing, trace_routing
from apps.analysis.routing_page import load_table, plot_routing, routing_page
from apps.analysis.states import StateCurve, States, measure_states
from apps.analysis.states_page import plot_states, states_page, states_table
from apps.analysis.surprisal import Surprisal, measure_surprisal
from apps.analysis.surprisal_page import most_surprising, surprisal_page
from apps.analysis.tokens import label, vocabulary_texts
from common.data.tokenizers import BPETokenizer, CharTokenizer
from common.errors import DataError
from common.models import Decoder

ATTACK = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2><!--"
TEXT = f'the "cat" & dog\n\tsat \x00\u202e on 🦊 mats {ATTACK}'
# Its tokens are whole pieces of markup, so that they stand in the data as well as in the text.
TOKENIZER = BPETokenizer.train([f"{ATTACK} the cat sat on the mat. " * 50], 400)


def model() -> Decoder:
    torch.manual_seed(0)
    size = TOKENIZER.vocab_size
    return Decoder(size, num_layers=2, num_heads=2, hidden_size=16, context_length=16)


def experts_and_states() -> Decoder:
    """A recurrent layer, attention, and experts in both."""
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "context_length": 64}
    layers = {"layers": "gated_delta_net attention", "positions": "none", "feedforward": "moe"}
    options = {"moe": {"num_experts": 5, "top_k": 2}}
    return Decoder(TOKENIZER.vocab_size, options=options, **sizes, **layers)


def measured() -> Surprisal:
    ids = TOKENIZER.encode(TEXT)
    return measure_surprisal(
        model(), ids, token_bytes=TOKENIZER.token_bytes, context_length=16, top_k=5
    )


def labels() -> list[str]:
    return [label(text, i) for i, text in enumerate(vocabulary_texts(TOKENIZER))]


def all_pages() -> dict[str, Page]:
    ids = TOKENIZER.encode(ATTACK)[:16]
    names = labels()
    counts = np.arange(TOKENIZER.vocab_size)
    projection = project(embedding_table(model()))
    texts = vocabulary_texts(TOKENIZER)
    both = experts_and_states()
    return {
        "routing": routing_page(
            trace_routing(both, TOKENIZER.encode(TEXT), context_length=16), TOKENIZER, ATTACK
        ),
        "states": states_page(measure_states(both, ids), TOKENIZER, ATTACK),
        "surprisal": surprisal_page(measured(), TOKENIZER, ATTACK),
        "attention": attention_page(
            attention_maps(model(), torch.from_numpy(ids)[None]), [names[i] for i in ids], ATTACK
        ),
        "embeddings": embeddings_page(projection, texts, names, counts, ATTACK),
    }


class Structure(HTMLParser):
    """What a browser finds in a page: its elements with their attributes."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))


def data_of(page: Page) -> Any:
    found = re.search(r'id="data">(.*?)</script>', page.html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("kind", ["surprisal", "attention", "embeddings", "routing", "states"])
def test_a_hostile_text_stays_text_and_nothing_is_loaded(kind: str) -> None:
    page = all_pages()[kind]
    elements = Structure(page).elements
    tags = [tag for tag, _ in elements]
    assert tags.count("script") == 2 and "img" not in tags and "iframe" not in tags
    for _, attributes in elements:
        names = set(attributes)
        assert not names & {"src", "href", "style", "onerror", "onclick", "onload"}
    policy = next(a["content"] for t, a in elements if t == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy
    assert "<" not in re.search(r'id="data">(.*?)</script>', page.html, re.DOTALL)[1]  # type: ignore[index]  # it is there
    assert "\x00" not in page.html and "\u202e" not in page.html


def test_the_text_of_the_page_is_the_text() -> None:
    page = surprisal_page(measured(), TOKENIZER, "title")
    body = page.html.split('<div class="text">')[1].split("</div>")[0]
    body = re.sub(r'<span class="sign">.</span>', "", body)
    shown = html.unescape(re.sub(r"<[^>]+>", "", body))
    assert shown == TEXT.replace("\x00", "␀").replace("\u202e", "⟨U+202E⟩")


def test_every_token_has_its_colour_cost_and_alternatives() -> None:
    found = measured()
    page = surprisal_page(found, TOKENIZER, "title")
    data = data_of(page)
    classes = re.findall(r'<span class="token ([^"]+)">', page.html)
    assert len(classes) == len(data["tokens"]) == len(data["alternatives"]) == len(found.ids)
    assert classes[0] == "given" and data["tokens"][0][1] is None and data["alternatives"][0] == []
    names = labels()
    for place in range(1, len(found.ids)):
        name, bits, rank, context = data["tokens"][place]
        assert name == names[found.ids[place]] and bits == pytest.approx(
            found.bits[place], abs=1e-6
        )
        assert (rank, context) == (found.ranks[place], found.context[place])
        level = sum(bits >= edge for edge in (0.5, 1, 2, 3, 4, 6, 8, 12))
        assert classes[place].split()[0] == f"b{level}"
        assert ("again" in classes[place]) == (place > 1 and context == 1)
        shown = [data["words"][word] for word, _, _ in data["alternatives"][place]]
        assert shown == [names[i] for i in found.top_ids[place]]
        marked = [same for _, _, same in data["alternatives"][place]]
        assert marked == [int(i == found.ids[place]) for i in found.top_ids[place]]
    assert f"{found.bits_per_byte:.6f}" in page.html


def test_the_most_surprising_tokens_come_first() -> None:
    found = measured()
    rows = json.loads(most_surprising(found, TOKENIZER, "json"))
    assert [row["bits"] for row in rows] == sorted(found.bits[1:], reverse=True)[:10]
    assert rows[0]["place"] == int(np.nanargmax(found.bits)) + 1


def test_a_text_too_long_for_a_page_is_refused() -> None:
    ids = np.ones(50_001, dtype=np.int64)
    many = Surprisal(ids, ids * 1.0, ids, ids, ids[:, None], ids[:, None] * 1.0, 1)
    with pytest.raises(DataError, match="50,001 tokens"):
        surprisal_page(many, TOKENIZER, "title")


def test_attention_is_in_the_page_to_a_65535th() -> None:
    ids = torch.from_numpy(TOKENIZER.encode(ATTACK)[:9])[None]
    maps = attention_maps(model(), ids)
    data = data_of(attention_page(maps, ["t"] * 9, "title"))
    for layer, heads in zip(maps.weights, data["layers"], strict=True):
        for weights, packed in zip(layer, heads, strict=True):
            found = np.frombuffer(base64.b64decode(packed), "<u2").reshape(9, 9) / 65535
            np.testing.assert_allclose(found, weights, atol=0.5 / 65535 + 1e-12)
    many = AttentionMaps([np.broadcast_to(np.zeros(()), (20, 1000, 1000))])
    with pytest.raises(DataError, match="20,000,000 weights"):
        attention_page(many, ["t"] * 1000, "title")


def test_the_routing_page_has_the_experts_and_loads_of_every_layer() -> None:
    found = trace_routing(experts_and_states(), TOKENIZER.encode(TEXT), context_length=16)
    page = routing_page(found, TOKENIZER, "title")
    data = data_of(page)
    names = labels()
    assert [data["words"][i] for i in data["tokens"]] == [names[i] for i in found.ids]
    assert page.html.count('<span class="token">') == len(found.ids)
    rows = json.loads(load_table(found, "json"))
    for layer, shown, row in zip(found.layers, data["layers"], rows, strict=True):
        assert shown["experts"] == layer.experts.tolist() and shown["load"] == layer.load.tolist()
        np.testing.assert_allclose(shown["weights"], layer.weights, atol=5e-5)
        assert shown["statistics"] == row and row["max_load"] == max(shown["load"])
        assert np.sum(shown["matrix"], axis=1).tolist() == shown["load"]
        assert np.sum(shown["matrix"], axis=0).tolist() == [2 * n for n in data["kind_counts"]]
        for expert, top in enumerate(shown["top"]):
            for word, received in top:
                places = np.array(data["tokens"]) == word
                assert received == (layer.experts[places] == expert).sum() <= data["counts"][word]
    many = Routing(np.zeros(50_001, dtype=np.int64), [])
    with pytest.raises(DataError, match="50,001 tokens"):
        routing_page(many, TOKENIZER, "title")


def test_the_states_page_has_every_curve_and_influence() -> None:
    found = measure_states(experts_and_states(), TOKENIZER.encode(TEXT)[:40])
    data = data_of(states_page(found, TOKENIZER, "title"))
    names = [layer["name"] for layer in data["layers"]]
    assert names == ["layer 0 (gated_delta_net)", "layer 1 (attention)", "prediction"]
    assert data["layers"][1]["curves"] == [] and data["layers"][1]["of"] == "output"
    for curve, shown in zip(found.curves, data["layers"][0]["curves"], strict=True):
        assert (shown["tensor"], shown["groups"]) == (curve.tensor, curve.groups)
        np.testing.assert_allclose(np.array(shown["norms"]).T, curve.norms, rtol=1e-4)
        changes = np.array(shown["changes"], dtype=float).T  # None is NaN
        np.testing.assert_allclose(changes, curve.changes, rtol=1e-4)
    for influence, layer in zip(found.influences, data["layers"], strict=True):
        shares = influence.norms[::-1] / influence.norms.sum()
        np.testing.assert_allclose(layer["influence"], shares, rtol=1e-4)
        assert layer["tokens_90"] == influence.tokens_with(0.9)
    rows = json.loads(states_table(found, "json"))
    assert [row["state"] for row in rows] == ["hidden", "inputs.past", "output", "output"]
    curve = found.curves[0]
    many = np.broadcast_to(np.zeros(()), (2**20, 2))
    long = StateCurve(0, "gru", "hidden", 2, curve.groups, many, many)
    with pytest.raises(DataError, match="4,194,304 points"):
        states_page(States(found.ids, [long], []), TOKENIZER, "title")


def test_pictures_are_drawn_whatever_the_labels(tmp_path: Path) -> None:
    names = ["$x^2$", "a_b", "\\frac", "␣the", "<b>"]
    maps = AttentionMaps([np.tril(np.full((2, 5, 5), 0.2))] * 2)
    figure = plot_attention(maps, names, "$ of \\")
    figure.savefig(tmp_path / "attention.png")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"layer {layer}, head {head}" for layer in (0, 1) for head in (0, 1)]
    both, ids = experts_and_states(), TOKENIZER.encode(TEXT)
    figure = plot_routing(trace_routing(both, ids, context_length=16), "$ of \\")
    figure.savefig(tmp_path / "routing.png")
    assert [axes.get_title()[:8] for axes in figure.axes] == ["layer 0:", "layer 1:"]
    figure = plot_states(measure_states(both, ids[:40]), "$ of \\")
    figure.savefig(tmp_path / "states.png")
    assert len(figure.axes) == 2 * 2 + 1  # norm and change of two tensors, influences
    points = project(np.random.default_rng(0).normal(size=(5, 4)))
    figure = plot_embeddings(points, names, names, np.array([5, 4, 3, 2, 0]), "$ of \\")
    figure.savefig(tmp_path / "embeddings.png")
    assert 1 <= len(figure.axes[0].texts) <= 4  # what never occurs has no name
    assert (tmp_path / "attention.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((" the", "word start"), ("ing", "word part"), (" 12", "number"), ('?"', "sign")),
        *(("\n", "space"), ("", "other"), ("\ufffd", "other"), ("<|endoftext|>", "other")),
    ],
)
def test_kinds_of_tokens(text: str, kind: str) -> None:
    assert kind_of(text) == kind


def test_a_notebook_shows_a_page_in_a_frame_that_may_do_nothing_else() -> None:
    page = surprisal_page(measured(), TOKENIZER, ATTACK)
    frame = page._repr_html_()
    (element,) = Structure(Page(frame)).elements
    assert element[0] == "iframe" and element[1]["sandbox"] == "allow-scripts"
    assert element[1]["srcdoc"] == page.html


# In a browser ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser, control = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or control is None:
        pytest.skip("needs chromium and chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the package selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    profile = tmp_path_factory.mktemp("browser")
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--window-size=1280,900", f"--user-data-dir={profile}"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(control))
    yield driver
    driver.quit()


@pytest.mark.slow
def test_the_pages_work_in_a_browser_and_run_nothing_of_the_text(
    driver: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    for kind, page in all_pages().items():
        page.write(tmp_path / f"{kind}.html")
        driver.get((tmp_path / f"{kind}.html").as_uri())
        assert driver.title == ATTACK
        assert driver.execute_script("return window.hacked") is None
        assert driver.get_log("browser") == []
        if kind == "surprisal":
            token = driver.find_elements("css selector", ".token")[2]
            ActionChains(driver).move_to_element(token).perform()
            tip = driver.find_element("id", "tip")
            assert "bits" in tip.text and len(tip.find_elements("css selector", "tbody tr")) == 5
        elif kind == "attention":
            heads = driver.find_elements("css selector", ".heads canvas")
            heads[3].click()
            assert driver.find_element("id", "chosen").text == "layer 1, head 1"
        elif kind == "routing":
            assert len(driver.find_elements("css selector", "#layers button")) == 2
            keys = ActionChains(driver).send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
            keys.perform()
            assert driver.find_element("id", "chosen").text == "layer 1"
            tip = driver.find_element("id", "tip")
            assert (
                "token 1, layer 1" in tip.text
                and len(tip.find_elements("css selector", "tbody tr")) == 2
            )
            driver.find_elements("css selector", "#experts button")[1].click()
            alone = len(driver.find_elements("css selector", ".token:not(.faint)"))
            assert alone == data_of(page)["layers"][1]["load"][0]
        elif kind == "states":
            assert len(driver.find_elements("css selector", "#norms path")) == 2
            driver.find_elements("css selector", "#tensors button")[1].click()
            assert len(driver.find_elements("css selector", "#changes path")) == 8
            assert len(driver.find_elements("css selector", "#influence path")) == 3
            token = driver.find_elements("css selector", ".token")[2]
            ActionChains(driver).move_to_element(token).perform()
            assert "token 3" in driver.find_element("id", "tip").text
        else:
            driver.find_element("css selector", "input").send_keys("script")
            matching = sum("script" in name for name in labels())
            assert driver.find_element("id", "found").text == f"{matching} found"
        assert driver.execute_script("return window.hacked") is None
        assert driver.get_log("browser") == []


def test_a_tokenizer_of_characters_has_pages_too() -> None:
    tokenizer = CharTokenizer(sorted(set(TEXT)))
    torch.manual_seed(0)
    small = Decoder(
        tokenizer.vocab_size, num_layers=1, num_heads=2, hidden_size=8, context_length=8
    )
    ids = tokenizer.encode(TEXT)
    found = measure_surprisal(small, ids, token_bytes=tokenizer.token_bytes, context_length=8)
    assert found.num_bytes == len(TEXT[1:].encode())
    assert surprisal_page(found, tokenizer, "title").html.count('class="token') == len(TEXT)
