"""The tables of generators, from a made-up record."""

from __future__ import annotations

from typing import Any

from tables import generation, generation_speed


def point(seen: int, distance: float) -> dict[str, Any]:
    costs = {"images_seen": seen, "images_per_second": 50.5, "peak_memory_mb": 2048}
    return costs | {"frechet_vit": distance, "precision_vit": 12.5}


FIGURES = [
    {
        "run": "flow", "points": [point(1000, 900.0), point(2000, 400.0)], "samples_per_second": 3.25,
        "sampling_peak_memory_mb": 512, "beside": {"held-out images": {"frechet_vit": 7.0, "precision_vit": 80.0}},
    },
    {
        "run": "flow, decoder finetuned on noise", "points": [point(2000, 300.0)], "samples_per_second": 3.0,
        "sampling_peak_memory_mb": 512,
        "beside": {
            "held-out images": {"frechet_vit": 7.0, "precision_vit": 80.0},
            "reconstructions of held-out images": {"frechet_vit": 60.0, "precision_vit": 70.0},
        },
    },
]  # fmt: skip


def test_the_first_run_on_its_way_and_what_all_are_beside() -> None:
    assert generation(FIGURES) == [
        "| pictures, as vit sees them | images seen | Fréchet distance | precision |",
        "| --- | --- | --- | --- |",
        "| flow, on the way | 1,000 | 900.00 | 12.50 |",
        "| flow | 2,000 | 400.00 | 12.50 |",
        "| flow, decoder finetuned on noise | 2,000 | 300.00 | 12.50 |",
        "| held-out images |  | 7.00 | 80.00 |",
        "| reconstructions of held-out images, as of flow, decoder finetuned on noise |  | 60.00 | 70.00 |",
    ]


def test_speed_is_of_those_that_are_trained() -> None:
    assert generation_speed(FIGURES)[2:] == ["| flow | 50.50 | 2.0 GB | 3.25 | 0.5 GB |"]


def test_the_network_of_fid_gives_fid() -> None:
    end = {"images_seen": 1, "fid": 9.0, "precision_inception": 1.0, "inception_score": 2.0}
    header = generation([{"run": "flow", "points": [end], "beside": {}}])[0]
    assert header == "| pictures, as inception sees them | images seen | fid | precision | inception score |"
