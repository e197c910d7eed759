"""The model measured on photos that a server has seen."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from clients import files, photo, refusal

from dist_train.classifier.measuring import Measurement

API = "/api/v1/models/model/"
Page = Callable[..., httpx.Client]


def test_a_model_is_measured_on_photos_that_it_has_seen(page: Page) -> None:
    web = page()
    seen = web.post(API + "classify", files=files(*(photo(number) for number in range(60, 66)))).json()["results"]
    labels = [result["predictions"][0]["name"] for result in seen[:4]] + ["n1", "n1"]
    asked = [{"id": result["id"], "label": label} for result, label in zip(seen, labels, strict=True)]
    answer = web.post(API + "evaluate", json={"photos": asked})
    measured = Measurement.from_json(answer.raise_for_status().json())
    cats = sum(result["predictions"][0]["name"] == "cat" for result in seen[4:])
    assert (measured.photos, round(measured.top1 * 6 / 100)) == (6, 4 + cats)
    assert [result.photo for result in measured.results] == [result["id"] for result in seen]
    assert web.get(API[:-1]).json()["limits"]["remembered"] == 2000

    def refused(*photos: dict[str, str]) -> str:
        answer = web.post(API + "evaluate", json={"photos": photos})
        assert answer.status_code == 422
        return refusal(answer)

    assert refused({"id": "x" * 64, "label": "cat"}, *asked).startswith(
        "7 photos, 1 of them not remembered, the first: xxx"
    )
    assert refused(asked[0], asked[0]) == "a photo is given twice; give each of them once"
    assert refused({**asked[0], "label": "nobody"}).startswith("label 'nobody': the model has no such class")
    assert refused().startswith("photos: ")
