"""The data doctor as a whole: broken data is found by kind and id, clean data passes, a stopped check is continued."""

import json
from dataclasses import replace

import pytest

from mg_llava.batch import TokenCount
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.records.schema import RecordError
from mg_llava.data.text.conversation import NoLabelError
from mg_llava.data.text.tokenizer import build_tokenizer
from mg_llava.inspection.doctor import KINDS, CheckOptions, ConfigError, check_dataset
from mg_llava.inspection.doctor import check as check_module
from mg_llava.inspection.doctor import images as images_module
from mg_llava.inspection.doctor.findings import PICTURE_FAULTS
from mg_llava.registry import DATASETS
from tests.data.broken import write_broken, write_clean
from tests.videos import write_video
from tests.work.test_tar_files import write_tar

QUIET = CheckOptions(workers=1, show_progress=False)


def ids_by_kind(report, source=0):
    return {kind: {found.id for found in all_} for kind, all_ in report.sources[source].findings.examples.items()}


def levels_of(report, source=0):
    findings = report.sources[source].findings
    return {kind: findings.level(kind) for kind in findings.counts}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return write_broken(tmp_path_factory.mktemp("data") / "broken")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_clean(tmp_path_factory.mktemp("data") / "clean")


@pytest.fixture(scope="module")
def report(broken):
    options = CheckOptions(workers=2, evaluation=(broken.evaluation(),), show_progress=False)
    return check_dataset(broken.arguments(), options)


def test_every_fault_is_found_by_kind_and_id_and_nothing_else(broken, report):
    assert ids_by_kind(report) == broken.expected


def test_pictures_in_tar_files_have_the_findings_that_they_have_in_a_folder(broken, report, tmp_path):
    files = [(path.name, path.read_bytes()) for path in sorted((broken.folder / "images").glob("*"))]
    linked = [name for name, _ in files if name.startswith("elsewhere")]
    files = [(name, str(broken.folder / name) if name in linked else content) for name, content in files]
    folder = write_tar(tmp_path / "all.tar", files)
    options = replace(QUIET, evaluation=(broken.evaluation(),), cache=tmp_path / "pictures")
    first = check_dataset(broken.arguments(image_folder=folder), options)
    expected = {kind: ids for kind, ids in broken.expected.items() if kind != "outside_picture"}  # no links in it
    expected["undecodable_picture"] = expected["undecodable_picture"] | {"elsewhere"}
    assert ids_by_kind(first) == expected
    again = check_dataset(broken.arguments(image_folder=folder), options)
    assert again.to_dict() == first.to_dict()


def test_faults_that_a_policy_skips_are_warnings(report):
    levels = levels_of(report)
    assert {kind for kind, level in levels.items() if level == "error"} == {"bad_record", "placeholder_count"}
    assert levels["truncated_picture"] == levels["missing_boxes"] == levels["no_label"] == "warning"
    assert report.errors == 7


def test_faults_that_stop_training_are_errors(broken):
    strict = dict(bad_image="error", missing_box="error", bad_box_record="error", no_label="error")
    levels = levels_of(check_dataset(broken.arguments(**strict), QUIET))
    for kind in ("truncated_picture", "oversized_picture", "missing_boxes", "bad_boxes", "no_label"):
        assert levels[kind] == "error"
    assert levels["wrong_extension"] == levels["box_outside"] == "warning"


def test_more_bad_samples_than_allowed_are_an_error(broken):
    found = ids_by_kind(check_dataset(broken.arguments(max_bad_samples=11), QUIET))
    assert "too_many_bad" in found
    assert "too_many_bad" not in ids_by_kind(check_dataset(broken.arguments(max_bad_samples=12), QUIET))


def test_the_data_set_fails_where_the_doctor_says(tmp_path):
    data = write_broken(tmp_path / "data", with_refused=False)
    dataset = DATASETS.build(data.arguments(box_path=None))
    assert dataset[0]["id"] == "good_0"
    failed = {}
    for index in range(len(dataset)):
        try:
            dataset.load(index)
        except ValueError as error:
            failed[dataset.record(index).id] = type(error)
    wanted = {record_id: PictureError for kind in PICTURE_FAULTS.values() for record_id in data.expected[kind]}
    assert failed == {**wanted, "crowd": NoLabelError}


REFUSED = [
    ({}, RecordError),
    ({"missing_box": "error"}, RecordError),
    ({"bad_image": "ignore"}, ValueError),
    ({"max_length": 0}, ValueError),
    ({"image_folder": "/nowhere"}, FileNotFoundError),
]


@pytest.mark.parametrize(("changes", "error"), REFUSED)
def test_errors_are_where_the_data_set_refuses(broken, clean, changes, error):
    data = clean if changes else broken
    if "missing_box" in changes:
        changes = {**changes, "box_path": broken.arguments()["box_path"]}
    with pytest.raises(error):
        DATASETS.build(data.arguments(**changes))
    assert check_dataset(data.arguments(**changes), QUIET).errors > 0


def test_a_wrong_number_of_tokens_is_an_error(clean):
    stated = clean.arguments(tokens_per_image=9)
    report = check_dataset(stated, QUIET, tokens=TokenCount(4))
    assert set(ids_by_kind(report)) == {"token_count"} and "9 tokens, the model gives 4" in report.to_text()
    assert ids_by_kind(check_dataset(stated, QUIET, tokens=TokenCount(9))) == {}
    assert ids_by_kind(check_dataset(stated, QUIET)) == ids_by_kind(check_dataset(clean.arguments(), QUIET)) == {}


def test_tokens_that_the_llm_lacks_are_errors(clean):
    rows = len(build_tokenizer(clean.arguments()["tokenizer"]))
    report = check_dataset(clean.arguments(), QUIET, check_module.LLMSizes(embeddings=rows - 2))
    assert set(ids_by_kind(report)) == {"no_embedding"} and report.errors == 1
    assert f"ids up to {rows - 1}, the LLM {rows - 2} word embeddings: 2 tokens have none" in report.to_text()
    for known in (rows, rows + 64, None):
        report = check_dataset(clean.arguments(), QUIET, check_module.LLMSizes(embeddings=known))
        assert ids_by_kind(report) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_dataset_length", value) for value in (0, -1, 0.5, 7.0, True, "7", float("nan"))),
        *(("repeat", value) for value in (0, -0.5, float("nan"), float("inf"))),
        *(("max_length", value) for value in (0, -5, 40.5, True)),
        *(("context_length", value) for value in (0, 2048.0, "2048")),
        *(("seed", value) for value in (-1, 0.5, "a", None)),
        *(("max_pixels", value) for value in (0, -4, 1e6)),
        *(("max_bad_samples", value) for value in (-1, None, 0.1)),
    ],
)
def test_settings_out_of_range_are_errors(clean, name, value):
    report = check_dataset(clean.arguments(**{name: value}), QUIET)
    assert set(ids_by_kind(report)) == {"config_setting"} and f"{name} is {value!r}" in report.to_text()
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        DATASETS.build(clean.arguments(**{name: value}))


def test_the_context_is_counted(broken):
    # 16 tokens for each of the 48 pictures of one record, and too little room for the boxes of many.
    options = dict(max_length=None, context_length=30, tokens_per_image=16)
    report = check_dataset(broken.arguments(**options), QUIET)
    found = ids_by_kind(report)
    assert found["over_budget"] == {"crowd"} and levels_of(report)["over_budget"] == "error"
    assert "good_0" in found["boxes_cut"] and report.sources[0].summary["sequence"]["longest"] <= 30
    assert "over_context" not in found
    known = check_dataset(broken.arguments(max_length=None), QUIET, check_module.LLMSizes(positions=100))
    assert ids_by_kind(known)["over_context"] == {"long", "crowd"}


def test_text_has_the_room_that_training_leaves_it(clean):
    spare = dict(max_length=None, spare_picture=True, tokens_per_image=16)
    report = check_dataset(clean.arguments(context_length=29, **spare), QUIET)
    assert report.sources[0].summary["lengths"]["limit"] == 29 - 16
    assert "truncated_text" in ids_by_kind(report)
    report = check_dataset(clean.arguments(context_length=16, **spare), QUIET)
    assert "context_length 16 leaves no room for text beside the 16 tokens" in report.to_text()


def test_clean_data_has_no_findings(clean):
    report = check_dataset(clean.arguments(missing_box="error", bad_image="error"), QUIET)
    assert report.errors == report.warnings == 0 and ids_by_kind(report) == {}
    summary = report.sources[0].summary
    assert (summary["records"], summary["used"], summary["pictures"], summary["boxes"]) == (7, 7, 6, 12)
    assert summary["template"]["loss"] == "Two dogs.</s>" and summary["template"]["prompt"].endswith("ASSISTANT:")
    assert sum(summary["lengths"]["counts"]) == 7 and summary["coordinates"]["compared"] == 12
    assert summary["coordinates"]["canvas_error"] <= 0.5 and summary["coordinates"]["drawn"] == 1


def test_exact_mode_is_proved_exactly(clean):
    processor = {"type": "mg_llava.PictureProcessor", "image_size": 64, "mode": "exact"}
    proof = check_dataset(clean.arguments(picture_processor=processor), QUIET).sources[0].summary["coordinates"]
    assert proof["compared"] == 12 and proof["original_error"] < 1e-6 and proof["drawn_error"] < 1.5


def test_report_can_be_read_and_written(broken, report):
    text = report.to_text()
    for kind, ids in broken.expected.items():
        assert f"    {kind}: " in text and KINDS[kind].fix in text
        assert any(f"id {record_id!r}" in text for record_id in ids if record_id) or kind == "bad_record"
    assert text.endswith("7 errors, 40 warnings: training would fail or learn from wrong boxes")
    assert "compared with 2 evaluation pictures" in text
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["training_would_fail"] and plain["totals"]["error"] == 7
    kinds = {entry["kind"]: entry for entry in plain["sources"][0]["findings"]}
    assert kinds["missing_picture"]["count"] == 2
    assert [example["id"] for example in kinds["missing_picture"]["examples"]] == ["gone", "renamed"]
    assert "renamed.png does" in kinds["missing_picture"]["examples"][1]["detail"]


@pytest.mark.parametrize("part", ["data_path", "image_folder", "box_path", "tokenizer"])
def test_a_missing_path_is_one_finding(clean, part):
    path = str(clean.folder / "nowhere" / "here.json")
    report = check_dataset(
        clean.arguments(**{part: {"pretrained_model_name_or_path": path} if part == "tokenizer" else path}), QUIET
    )
    assert report.errors == 1 and set(ids_by_kind(report)) == {"config_path"}
    (found,) = report.to_dict()["sources"][0]["findings"]  # the text shortens long paths
    assert f"{path} does not exist" in found["examples"][0]["detail"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "vicunia"}, "template 'vicunia' is unknown"),
        ({"picture_processor": {"type": "mg_llava.PictureProcessor", "image_size": 0}}, "image_size is 0"),
        ({"picture_processor": None}, "there are records with pictures; set image_folder and picture_processor"),
        ({"image_foldr": "x"}, "no setting image_foldr; did you mean image_folder?"),
    ],
)
def test_wrong_settings_are_findings(clean, changes, message):
    report = check_dataset(clean.arguments(**changes), QUIET)
    assert set(ids_by_kind(report)) == {"config_setting"} and message in report.to_text()


def test_broken_files_are_findings(clean, tmp_path):
    (tmp_path / "cut.json").write_text('[{"id": 1,')
    report = check_dataset(clean.arguments(data_path=str(tmp_path / "cut.json")), QUIET)
    assert "records_file" in ids_by_kind(report) and "cut.json" in report.to_text()
    report = check_dataset(clean.arguments(box_path=str(tmp_path / "cut.json")), QUIET)
    assert set(ids_by_kind(report)) == {"box_file"}


def test_all_sources_of_a_mixture_are_checked(clean, broken):
    mixture = {
        "type": "mg_llava.MixtureDataset",
        "sources": [clean.arguments(name="first"), {"type": "Concat", "datasets": [broken.arguments()]}],
    }
    report = check_dataset(mixture, QUIET)
    assert [source.name for source in report.sources] == ["first", "records"]
    assert ids_by_kind(report) == {}
    assert ids_by_kind(report, 1) == {kind: ids for kind, ids in broken.expected.items() if kind != "eval_leak"}
    two = {**mixture, "sources": [clean.arguments(), clean.arguments()]}
    found = check_dataset(two, QUIET).sources[0].findings.examples["config_setting"]
    assert "several sources are called records" in found[0].detail
    with pytest.raises(ConfigError, match="no sources"):
        check_dataset({"type": "mg_llava.MixtureDataset", "sources": []}, QUIET)


def test_settings_of_a_mixture_reach_its_sources(clean):
    settings = clean.arguments(data_root=str(clean.folder), image_folder="images", box_path="boxes.json")
    del settings["type"], settings["data_path"]
    mixture = {
        "type": "mg_llava.MixtureDataset",
        "sources": [{"name": name, "data_path": "records.json"} for name in "ab"],
        **settings,
    }
    report = check_dataset(mixture, QUIET)
    assert [source.summary["used"] for source in report.sources] == [7, 7] and report.errors == 0
    assert ids_by_kind(report) == ids_by_kind(report, 1) == {}
    assert len(DATASETS.build(mixture)) == 14
    report = check_dataset({**mixture, "tokeniser": "x"}, QUIET)
    assert "no setting tokeniser; did you mean tokenizer?" in report.to_text()


def test_only_what_is_drawn_is_checked(broken):
    report = check_dataset(broken.arguments(max_dataset_length=9, seed=3), QUIET)
    assert report.sources[0].summary["checked"] == 9


def test_a_data_set_of_another_kind_is_said_to_be_unchecked(clean):
    report = check_dataset({"type": "Concat", "datasets": [{"type": "Other"}, clean.arguments()]}, QUIET)
    assert set(ids_by_kind(report)) == {"unknown_dataset"} and ids_by_kind(report, 1) == {}


def test_limit_takes_records_from_all_over(broken):
    report = check_dataset(broken.arguments(), CheckOptions(workers=1, limit=10, show_progress=False))
    summary = report.sources[0].summary
    assert summary["checked"] == 10 and summary["records"] == 56
    rows = {found.row for all_ in report.sources[0].findings.examples.values() for found in all_}
    assert max(row for row in rows if row is not None) == 55


class Killed(BaseException):
    pass


def test_a_killed_check_goes_on_with_the_same_report(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "_PICTURES_A_JOB", 4)
    examined = []
    examine = images_module.examine_picture

    def counting(path, *arguments):
        examined.append(path)
        if limit is not None and len(examined) > limit:
            raise Killed
        return examine(path, *arguments)

    monkeypatch.setattr(images_module, "examine_picture", counting)
    limit = None
    wanted = check_dataset(broken.arguments(), QUIET).to_dict()
    total = len(examined)
    options = CheckOptions(workers=1, cache=tmp_path / "cache.jsonl", show_progress=False)
    examined.clear()
    limit = 18
    with pytest.raises(Killed):
        check_dataset(broken.arguments(), options)
    # Cut in the middle of a line, as a kill does.
    content = options.cache.read_bytes()
    options.cache.write_bytes(content[:-20])
    kept = content.count(b"\n") - 1
    examined.clear()
    limit = None
    assert check_dataset(broken.arguments(), options).to_dict() == wanted
    assert kept >= 10 and len(examined) == total - kept
    examined.clear()
    assert check_dataset(broken.arguments(), options).to_dict() == wanted
    missing = sum("gone" in path or "renamed" in path for path in examined)
    assert len(examined) == missing == 2


def test_a_changed_picture_is_read_again(clean, tmp_path):
    options = CheckOptions(workers=1, cache=tmp_path / "cache.jsonl", show_progress=False)
    data = write_clean(tmp_path / "data", records=2)
    assert check_dataset(data.arguments(), options).warnings == 0
    path = data.folder / "images" / "good_1.png"
    path.write_bytes(path.read_bytes()[:300])
    assert ids_by_kind(check_dataset(data.arguments(), options)) == {"truncated_picture": {"good_1"}}


def test_hashes_are_made_when_they_are_needed(broken, tmp_path):
    options = CheckOptions(workers=1, cache=tmp_path / "cache.jsonl", show_progress=False)
    assert "eval_leak" not in ids_by_kind(check_dataset(broken.arguments(), options))
    for _ in range(2):
        again = replace(options, evaluation=(broken.evaluation(),))
        assert ids_by_kind(check_dataset(broken.arguments(), again))["eval_leak"] == {"leaked"}


def test_records_about_videos(tmp_path):
    """Frames count as pictures; boxes of another number of frames are an error, as in training."""
    data = write_clean(tmp_path / "data", records=1)
    for name in ("good", "broken"):
        write_video(data.folder / "images" / f"{name}.mp4", frames=9)
    cut = data.folder / "images" / "broken.mp4"
    cut.write_bytes(cut.read_bytes()[:400])
    talk = [{"from": "human", "value": "<video>\nwhat is there?"}, {"from": "gpt", "value": "two digits"}]
    records = [{"id": name, "video": f"{name}.mp4", "conversations": talk} for name in ("good", "broken")]
    (data.folder / "records.json").write_text(json.dumps(records))
    boxes = [{"id": f"{name}#{n}", "boxes": [[4, 6, 20, 30]]} for name in ("good", "broken") for n in range(4)]
    (data.folder / "boxes.json").write_text(json.dumps([{**one, "scores": [0.9], "labels": ["a"]} for one in boxes]))
    processor = data.arguments()["picture_processor"]
    report, few = (
        check_dataset(data.arguments(picture_processor={**processor, "video": {"frames": frames}}), QUIET)
        for frames in (4, 2)
    )
    assert ids_by_kind(report).get("undecodable_picture") == {"broken"} and report.errors == 0
    assert "boxes_other_frames" not in ids_by_kind(report) and report.sources[0].summary["pictures"] == 8
    assert ids_by_kind(few)["boxes_other_frames"] == {"good", "broken"} and few.errors == 2
    with pytest.raises(RecordError, match="boxes for 4 frames of video 'good', and 2 frames are taken"):
        DATASETS.build(data.arguments(picture_processor={**processor, "video": {"frames": 2}}))
