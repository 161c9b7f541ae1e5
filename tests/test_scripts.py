"""Texts of pairs that hold scripts execute nothing: report, browser and executed notebooks in headless Chromium."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from nbconvert import HTMLExporter

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DEED = "document.title='OWNED'"
ATTACKS = [
    f"<script>{DEED}</script>",
    f'<img src=x onerror="{DEED}">',
    f"</textarea></script><script>{DEED}</script>",
    f'"><svg onload="{DEED}">',
    f'<iframe srcdoc="<script>parent.{DEED.replace(chr(39), "&quot;")}</script>"></iframe>',
    f"{{{{ cycler.__init__ }}}} ${{{DEED}}} $\\href{{javascript:{DEED}}}{{x}}$ [x](javascript:{DEED})",
]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


def rendered(page) -> str:
    """The page after its scripts have run, as Chromium has it."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    result = subprocess.run(
        [CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return result.stdout


@pytest.mark.parametrize("attack", ATTACKS[:5])
def test_what_is_not_escaped_would_be_seen(tmp_path, attack):
    page = tmp_path / "page.html"
    page.write_text(f"<title>quiet</title><body>{attack}</body>", encoding="utf-8")
    assert "<title>OWNED</title>" in rendered(page)


def test_scripts_in_pairs_execute_nothing(tiny_models, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for split, n in {"gt": 12, "w2s": 12, "validation": 6, "test": 18, "helpful": 12}.items():
        rows = [
            {
                "prompt": f"{split} {i} {ATTACKS[i % 6]}",
                "chosen": f"{ATTACKS[i % 6]} a{i}",
                "rejected": f"{ATTACKS[(i + 1) % 6]} b",
            }
            for i in range(n)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    weak, *strong = tiny_models
    study = {"study": "scripts", "data": str(folder), "output_dir": str(tmp_path / "out"), "max_length": 128}
    study |= {"weak_models": [weak], "strong_models": strong, "intermediate_models": strong[:1], "bootstrap": 20}
    study |= {"n_gt": 12, "n_w2s": 12, "n_validation": 6, "n_test": 18, "n_helpful": 12, "workers": 1}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    run = [sys.executable, "-m", "w2s.app.cli", "run", str(tmp_path / "study.yaml")]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

    pages = [tmp_path / "out" / "scripts" / "report.html"]
    for notebook in sorted((tmp_path / "out" / "scripts").glob("*.ipynb")):
        pages.append(notebook.with_suffix(".html"))
        pages[-1].write_text(HTMLExporter().from_filename(str(notebook))[0], encoding="utf-8")
    assert len(pages) == 6
    texts = {page.name: rendered(page) for page in pages}
    assert [name for name, text in texts.items() if "<title>OWNED</title>" in text] == []
    assert "onerror" in texts["04_deception_analysis.html"]  # the texts are there, and shown as text
