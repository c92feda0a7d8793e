"""Parts from a file outside the package: they pass the whole contract, or are refused where a system is built."""

from pathlib import Path
from typing import Any

import pytest

from tests import toy
from tests.contract import outside
from tests.contract.cases import case_of
from tests.contract.contract import Contract, build


@pytest.mark.parametrize(
    "kind", [outside.SideBySideFusion, outside.QueriesFusion, outside.AllStagesFusion, outside.CenterReader]
)
def test_a_part_of_a_user_passes(kind: type, paths: dict[str, str], tmp_path: Path) -> None:
    Contract(case_of(kind, paths).model, paths, tmp_path).whole()


def test_a_projector_with_fewer_tokens_passes(paths: dict[str, str], tmp_path: Path) -> None:
    Contract(case_of(outside.PairProjector, paths).model, paths, tmp_path).short()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_projector": "ForwardReader"}, "ForwardReader does not write pool and project; see .*ObjectReader"),
        ({"box_projector": "PlainReader"}, "PlainReader; derive it from mg_llava.models.interfaces.ObjectReader"),
        ({"low_res_encoder": "PlainEncoder"}, "PlainEncoder, which is no encoder; derive it from .*VisionEncoder"),
        ({"fusion": "WidthlessFusion"}, "WidthlessFusion .*sets no out_channels; set it in __init__"),
    ],
)
def test_a_faulty_part_is_refused(changes: dict[str, str], message: str, paths: dict[str, str]) -> None:
    parts = {name: {"type": f"mg_llava.{kind}"} for name, kind in changes.items()}
    with pytest.raises(ValueError, match=message):
        build(toy.model_config(paths, **parts))


def test_a_wrong_name_is_answered(paths: dict[str, str]) -> None:
    with pytest.raises(KeyError, match=r"did you mean 'ConvGateFusion'.*known: .*MLPProjector"):
        build(toy.model_config(paths, fusion={"type": "mg_llava.ConvGateFusoin"}))


def test_wrong_arguments_of_parts_are_answered_together(paths: dict[str, str]) -> None:
    changes = {
        "fusion": {"type": "mg_llava.ConvGateFusion", "gate": "token"},
        "box_projector": {"type": "mg_llava.RoIAlignBoxProjector", "dept": 2},
    }
    both = (
        r"fusion: ConvGateFusion has no argument gate; did you mean gate_.*RoIAlignBoxProjector has no argument dept;"
    )
    with pytest.raises(ValueError, match=f"do not go together: {both} did you mean depth"):
        build(toy.model_config(paths, **changes))
    with pytest.raises(ValueError, match=r"MLPProjector has no argument hidden .*known: "):
        build(toy.model_config(paths, projector={"type": "mg_llava.MLPProjector", "hidden": 3}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": {"gate_per": "token"}}, "the type of a part is None, in {'gate_per'"),
        ({"projector": {"type": 5}}, "the type of a part is 5"),
        ({"losses": {"type": "mg_llava.LanguageLoss"}}, "a list of losses is needed"),
        ({"box_projector": {"type": "mg_llava.RoIAlignBoxProjector", "bins": 0}}, "bins is 0, must be at least 1"),
    ],
)
def test_configs_that_are_none_are_named(changes: dict[str, Any], message: str, paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=message):
        build(toy.model_config(paths, **changes))


# -- other ways to train --------------------------------------------------------------------------------------------


def test_trained_encoders_are_saved_and_converted(paths: dict[str, str], tmp_path: Path) -> None:
    trains = ["low_res_encoder", "high_res_encoder", "fusion", "projector", "box_projector", "llm"]
    contract = Contract(toy.model_config(paths, "full", trains=trains), paths, tmp_path)
    assert any(name.startswith("visual_encoder.") for name in contract.system.state_dict())
    contract.whole()


def test_connectors_that_are_not_trained_are_saved_too(paths: dict[str, str], tmp_path: Path) -> None:
    contract = Contract(toy.model_config(paths, trains=["projector"]), paths, tmp_path)
    assert {name.split(".")[0] for name in contract.system.state_dict()} == {
        "fuse_module",
        "projector",
        "bbox_projector",
    }
    contract.short()


@pytest.mark.parametrize("llm", [True, False], ids=["with LLM", "without LLM"])
def test_losses_are_summed(llm: bool, paths: dict[str, str], tmp_path: Path) -> None:
    losses = [{"type": "mg_llava.NormLoss"}, *([{"type": "mg_llava.LanguageLoss"}] if llm else [])]
    changes: dict[str, Any] = {"losses": losses} if llm else {"losses": losses, "llm": None}
    contract = Contract(toy.model_config(paths, "full", **changes), paths, tmp_path)
    contract.trains()
    contract.saves()
    contract.plans()


def test_the_llm_may_train_alone(paths: dict[str, str], tmp_path: Path) -> None:
    """The first connector has no parameters, and nothing but the LLM is trained."""
    fusion = {"type": "mg_llava.SideBySideFusion"}
    contract = Contract(toy.model_config(paths, "full", fusion=fusion, trains=["llm"]), paths, tmp_path)
    trained = {name.split(".")[0] for name, p in contract.system.named_parameters() if p.requires_grad}
    assert trained == {"llm"}
    contract.short()
