# SPDX-License-Identifier: Apache-2.0
"""Published benchmarks that are answered in words. Their files lie where the official evaluation wants them;
`{root}` is its folder `data`. See `configs.mixtures`."""

from typing import Any

_SHORT = "Answer the question using a single word or phrase."
_UNSURE = "When the provided information is insufficient, respond with 'Unanswerable'."
_LETTER = "Answer with the option's letter from the given choices directly."
_LETTER_CN = "请直接回答选项字母。"


def _benchmark(
    annotations: str, *metrics: str, request: str | None = _SHORT, **options: str
) -> dict[str, Any]:
    """One benchmark; pictures are five tiles, as published."""
    paths = {"annotations": f"{{root}}/{annotations}", "image_root": "{root}", "prefix": "data/"}
    return {
        "tiles": 5,
        "metrics": metrics,
        "datasets": {"questions": {**paths, "request": request, **options}},
    }


QUESTIONS_HELDOUT: dict[str, dict[str, Any]] = {
    "vqav2": _benchmark(
        "vqav2/vqav2_val.jsonl", "vqa", answers="{root}/vqav2/v2_mscoco_val2014_annotations.json"
    ),
    "okvqa": _benchmark(
        "okvqa/okvqa_val.jsonl", "vqa", answers="{root}/okvqa/mscoco_val2014_annotations.json"
    ),
    # With the words that were read in the picture.
    "textvqa": _benchmark(
        "textvqa/textvqa_val_llava.jsonl", "vqa", answers="{root}/textvqa/textvqa_val_annotations.json"
    ),
    "vizwiz": _benchmark(
        "vizwiz/vizwiz_val.jsonl",
        "vqa",
        answers="{root}/vizwiz/vizwiz_val_annotations.json",
        request=f"{_UNSURE} {_SHORT}",
    ),
    "gqa": _benchmark("gqa/llava_gqa_testdev_balanced_qwen_format.jsonl", "accuracy"),
    "docvqa": _benchmark("docvqa/val.jsonl", "anls", answers="{root}/docvqa/val/val_v1.0.json"),
    "chartqa_human": _benchmark("chartqa/test_human.jsonl", "relaxed"),
    "chartqa_augmented": _benchmark("chartqa/test_augmented.jsonl", "relaxed"),
    "ocrvqa": _benchmark("ocrvqa/ocrvqa_test.jsonl", "exact_match"),
    "ai2d": _benchmark("ai2diagram/test.jsonl", "exact_match", request=""),
    "scienceqa": _benchmark("scienceqa/scienceqa_test_img.jsonl", "choice", request=_LETTER),
    "mmbench_en": _benchmark("mmbench/mmbench_dev_20230712.tsv", "circular", request=_LETTER),
    "mmbench_cn": _benchmark("mmbench/mmbench_dev_cn_20231003.tsv", "circular", request=_LETTER_CN),
    "seed": _benchmark("SEED/seed.jsonl", "choice", request=None, image_root="{root}/SEED"),
    "pope": _benchmark(
        "pope/llava_pope_test.jsonl",
        "pope",
        request="",
        answers="{root}/pope/coco",
        image_root="{root}/pope/val2014",
    ),
    "mme": _benchmark("mme/eval_tool/Your_Results", "mme", image_root="{root}/mme/images"),
    # Questions about the objects of a picture: where stage 1 has its training part (`configs.mixtures`).
    "vcr": {
        "tiles": 5,
        "regions": 64,
        "metrics": ("vcr",),
        "datasets": {"vcr": {"annotations": "{root}/vcr/val.jsonl", "image_root": "{root}/vcr"}},
    },
}
