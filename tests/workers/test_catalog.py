"""`headrace.toml`: what it means, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.catalog import ModelEntry, WrongCatalog, load


def written(path: Path, text: str) -> Path:
    file = path / "headrace.toml"
    file.write_text(text)
    return file


def test_without_a_file_either_key_is_enough_for_every_tier() -> None:
    catalog = load(None)
    for tier in ("fast", "standard", "premium"):
        entry = catalog.tier(tier)
        assert entry is not None
        assert {name.partition("/")[0] for name in entry.models} == {"anthropic", "openai"}
        assert entry.after_content == ("splice", "restart")  # never text that no model wrote
    assert catalog.tier("complex") == catalog.tier("premium")
    assert catalog.tier("nonsense") is None
    assert catalog.providers["anthropic"].has_key({"ANTHROPIC_API_KEY": "k"})
    assert not catalog.providers["anthropic"].has_key({"ANTHROPIC_API_KEY": ""})


def test_a_file_is_laid_over_the_defaults_key_by_key(tmp_path: Path) -> None:
    text = """
        [providers.local]
        format = "openai"
        base_url = "http://127.0.0.1:9000/v1"

        [providers.anthropic.clocks]
        idle_s = 7

        [tiers.fast]
        models = ["local/llama", "anthropic/claude-haiku-5-5"]
    """
    catalog = load(written(tmp_path, text))
    assert catalog.providers["local"].has_key({})
    assert catalog.providers["anthropic"].format == "anthropic"
    assert catalog.providers["anthropic"].clocks.idle_s == 7
    assert catalog.providers["anthropic"].clocks.connect_s == 5
    fast, standard = catalog.tier("fast"), catalog.tier("standard")
    assert fast is not None and fast.models == ("local/llama", "anthropic/claude-haiku-5-5")
    assert standard == load(None).tier("standard")
    assert catalog.model("local/llama") == ModelEntry()
    assert not catalog.model("anthropic/claude-haiku-5-5").sampling


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[providers.x]\nformat = "smtp"', r"2: providers\.x\.format .*smtp"),
        ('[providers.x]\nbase_url = "y"', r"1: providers\.x `format` is missing"),
        ("[providers.openai]\n\nrequests = 0", r"3: providers\.openai\.requests .*>= 1"),
        ('[providers.openai]\nkeys = ["X"]', r"2: providers\.openai\.keys is no such key"),
        ('[providers.openai.clocks]\nidle_s = "x"', r"2: providers\.openai\.clocks\.idle_s .*float"),
        ('[providers.fallback]\nformat = "openai"', r"1: providers\.fallback is no name"),
        ('[models."foo/bar"]', r'1: models\."foo/bar" names no provider'),
        ('# why\n[models."openai/x"]\ncontext = -1', r'3: models\."openai/x"\.context'),
        ('[tiers.fast]\nmodels = ["gpt"]', r"2: tiers\.fast\.models “gpt” is not provider/model"),
        ("[tiers.fast]\nmodels = []", r"2: tiers\.fast\.models .*length >= 1"),
        ('[tiers.fast]\nafter_content = ["splice"]', r"2: tiers\.fast\.after_content .*ends with restart or error"),
        ("[tiers.fast]\nhedge_after_s = 0", r"2: tiers\.fast\.hedge_after_s .*> 0"),
        ('[tiers.fast]\nhedge_after_s = "p50"', r"2: tiers\.fast\.hedge_after_s .*p50"),
        ('[complexity]\nsimple = "none"', r"2: complexity\.simple must name a tier"),
        ('[tiers.fast]\nmodels = ["openai/"]', r"2: tiers\.fast\.models “openai/” is not provider/model"),
        ("# x\nproviders.openai.clocks.idle_s = -1", r"2: providers\.openai\.clocks\.idle_s .*> 0"),
        ('[[providers.openai]]\nformat = "openai"', r"1: providers\.openai "),
        ('[models."openai/x".price]\ninput = inf\noutput = 1', r'2: models\."openai/x"\.price\.input'),
        ('[models."openai/x".price]\ninput = nan\noutput = 1', r'2: models\."openai/x"\.price\.input'),
        ('[providers.openai]\nbase_url = "http://h:99999/"', r"2: providers\.openai\.base_url must begin"),
        ('[providers.openai]\nbase_url = "http:///v1"', r"2: providers\.openai\.base_url must begin"),
        ("[colours]\na = 1", r"1: colours is not known here"),
        ("tiers = 3", r"1: tiers must be a table"),
        ("[providers", r"at the end of a table declaration"),
    ],
)
def test_a_wrong_file_is_told_its_line_its_key_and_what_would_be_right(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(WrongCatalog, match=complaint) as caught:
        load(written(tmp_path, text))
    assert "headrace.toml" in str(caught.value)


def test_the_page_s_example_is_a_catalog(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    catalog = load(written(tmp_path, example))
    assert catalog.providers["local"].requests == 50
    assert catalog.model("local/llama-4").context == 32_000


@pytest.mark.parametrize(("value", "meant"), [("2", 2.0), ("0.7", 0.7), ('"p95"', "p95")])
def test_a_tier_says_after_how_much_silence_it_hedges(tmp_path: Path, value: str, meant: object) -> None:
    catalog = load(written(tmp_path, f"[tiers.fast]\nhedge_after_s = {value}"))
    hedged = {name: tier.hedge_after_s for name, tier in catalog.tiers.items() if tier.hedge_after_s is not None}
    assert hedged == {"fast": meant}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongCatalog, match=r"absent\.toml: cannot be read"):
        load(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(WrongCatalog, match="UTF-8"):
        load(tmp_path / "latin.toml")
