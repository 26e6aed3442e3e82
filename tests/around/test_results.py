"""Do the metafiles hold what the code and the lab notes say, and docs/recipes.md what they hold?"""

from __future__ import annotations

import re

import model_tables
import pytest

from hire_mlp_mm.weights import WEIGHTS
from tests.around.test_configs import ARCH_OF, CONFIGS, MODELS_BY_NAME, RECIPES
from tests.conftest import ROOT


def test_recipes_page_has_the_metafiles_tables():
    text = model_tables.PAGE.read_text()
    assert model_tables.with_tables(text) == text, "`make tables` writes them"
    for name in RECIPES:
        assert text.count(f"| `{name}.py` |") == 1


def test_a_changed_table_is_put_right():
    text = model_tables.PAGE.read_text()
    changed = text.replace("| 46.1 mIoU,", "| 99.9 mIoU,")
    assert changed != text
    assert model_tables.with_tables(changed) == text


def test_every_recipe_has_its_place():
    assert set(MODELS_BY_NAME) == set(RECIPES)
    for name, model in MODELS_BY_NAME.items():
        assert model["Config"] == f"configs/{name}.py"


@pytest.mark.parametrize("name", RECIPES)
def test_results_are_those_of_the_lab_note(name):
    """Each published figure with its source, and no other."""
    model = MODELS_BY_NAME[name]
    lab_note = " ".join((CONFIGS / f"{name}.py").read_text().split('"""')[1].split())
    if "Results" not in model:
        assert "No figure is published" in lab_note
        assert not {"Results From", "Published FLOPs"} & set(model["Metadata"])
        return
    source, claim = model["Metadata"]["Results From"].split("; ")
    assert claim == "published, not rerun here"
    assert "Not rerun here." in lab_note
    assert f"({source})" in lab_note
    metrics = {key: value for r in model["Results"] for key, value in r["Metrics"].items()}
    shown = [metrics[key] for key in model_tables.METRICS if key in metrics]
    published = lab_note[lab_note.index("Published: ") : lab_note.index(f"({source})")]
    assert [float(figure) for figure in re.findall(r"\d+\.\d+", published)] == shown
    for figure, unit in (("Published Parameters", "M parameters"), ("Published FLOPs", "GFLOPs")):
        if figure in model["Metadata"]:
            value = model["Metadata"][figure].split()[0]
            said = re.search(rf"([\d.]+) {unit}", lab_note)[1]
            assert round(float(said)) == round(float(value))


@pytest.mark.parametrize("size", ARCH_OF)
def test_weights_are_the_package_s(size):
    model = MODELS_BY_NAME[f"hire_{size}_imagenet"]
    # Nobody could load them as they stand, so no tool may take them for the model's own.
    assert "Weights" not in model
    if ARCH_OF[size] not in WEIGHTS:
        assert "Converted From" not in model
        return
    record = WEIGHTS[ARCH_OF[size]]
    assert model["Converted From"]["Weights"] == record.url
    assert model["Converted From"]["License"] == record.licence
    assert model["Results"][0]["Metrics"]["Top 1 Accuracy"] == record.top1
    assert model["Metadata"]["Results From"].startswith(f"{record.source};")


def test_no_other_model_has_weights():
    for name, model in MODELS_BY_NAME.items():
        assert name.endswith("imagenet") or not {"Weights", "Converted From"} & set(model)


def test_model_index_can_be_read():
    index = pytest.importorskip("modelindex.load_model_index").load(str(ROOT / "model-index.yml"))
    assert index.check(silent=True) == []
    assert {model.name for model in index.models} == set(RECIPES)
    assert {model.in_collection for model in index.models} == {c.name for c in index.collections}
